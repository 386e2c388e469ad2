"""What is refused before anything is trained, and as early as it can be known."""

import pytest
import tiny

from pintern.assemble import assemble
from pintern.errors import UserError
from pintern.evaluation.run import InferencePrompt
from pintern.evaluation.run import test_rows as rows_to_score
from pintern.training.lengths import check_lengths
from pintern.training.teacher import check_distillation


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


def test_too_many_new_tokens():
    """An adaptive curriculum is scored on the way; a teacher answers queries; a run is scored."""
    base = tiny.parts().checkpoint, tiny.parts().tokenizer
    many = {"eval__max_new_tokens": 600}
    said = r"of row, 600 of config\.eval\.max_new_tokens\).* fewer new tokens"
    probed = assemble(tiny.config(**many, curriculum__schedule="adaptive"), base=base)
    with pytest.raises(UserError, match=r"Training example .*" + said):
        check_lengths(probed)
    answered = assemble(tiny.config(**many, distill__weight=1.0, distill__unlabelled=4), base=base)
    with pytest.raises(UserError, match=r"Query .*" + said):
        check_distillation(answered)
    with pytest.raises(UserError, match=r"Test example .*" + said):
        rows_to_score(assemble(tiny.config(**many), base=base), InferencePrompt(0.0, 0))


def test_data_that_cannot_be_read_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"/none\.jsonl can't be read"):
        assemble(tiny.config(task__train="/none.jsonl", model__path="/nowhere"))
