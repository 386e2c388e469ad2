"""What is refused before anything is trained, and as early as it can be known."""

import pytest
import tiny

from pintern.assemble import assemble
from pintern.errors import UserError
from pintern.training.lengths import check_lengths


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt__max_shots": 24}, r"config\.prompt\.max_shots asks for 24 .* there are 24 lab"),
        ({"distill__weight": 1.0, "distill__shots": 30}, r"config\.distill\.shots asks for 30 "),
    ],
)
def test_more_examples_than_there_are_pairs(changes, said):
    base = tiny.parts().checkpoint, tiny.parts().tokenizer
    with pytest.raises(UserError, match=said):
        check_lengths(assemble(tiny.config(**changes), base=base))


def test_data_that_cannot_be_read_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"/none\.jsonl can't be read"):
        assemble(tiny.config(task__train="/none.jsonl", model__path="/nowhere"))
