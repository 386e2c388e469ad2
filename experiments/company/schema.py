"""The company's database, written out: a firm that sells and rents bicycles.

Pre-training draws schemas at random and never saw this one. What its words mean, and which rows
count, stands in the prompt alone.
"""

from experiments.nano.questions import Question
from experiments.nano.schema import Column, Schema, Table

CUSTOMERS = Table(
    word="customers",
    code="lod",
    columns=(
        Column("name", "vit", "text"),
        Column("age", "keb", "number"),
        Column("city", "zuv", "text"),
        Column("points", "rux", "number"),
        Column("language", "tef", "text"),
        Column("phase", "pib", "state"),
        Column("credits", "piv", "number"),
    ),
    states=(("archived", 63), ("active", 26)),
    metrics=(("value", "rux + piv"),),
    left_out="archived",
)
ORDERS = Table(
    word="orders",
    code="sof",
    columns=(
        Column("date", "gil", "date"),
        Column("price", "mes", "number"),
        Column("category", "bov", "text"),
        Column("quantity", "dug", "number"),
        Column("status", "zer", "state"),
        Column("discount", "lak", "number"),
        Column("rating", "fib", "number"),
    ),
    states=(("cancelled", 47), ("shipped", 82), ("urgent", 31)),
    metrics=(("revenue", "mes * dug"),),
    left_out="cancelled",
)
RENTALS = Table(
    word="rentals",
    code="tig",
    columns=(
        Column("hours", "vam", "number"),
        Column("grade", "sev", "text"),
        Column("start", "zot", "date"),
        Column("fee", "rud", "number"),
        Column("stage", "kap", "state"),
        Column("distance", "mex", "number"),
        Column("cost", "las", "number"),
    ),
    states=(("paid", 58), ("late", 19), ("pending", 74)),
    metrics=(("turnover", "rud * vam"),),
)
BIKES = Table(
    word="bikes",
    code="zik",
    columns=(
        Column("brand", "lep", "text"),
        Column("weight", "tul", "number"),
        Column("color", "gar", "text"),
        Column("condition", "bam", "state"),
        Column("speed", "vog", "number"),
        Column("material", "neb", "text"),
        Column("size", "zeg", "number"),
    ),
    states=(("broken", 86), ("reserved", 13), ("new", 69)),
    left_out="broken",
)
STATIONS = Table(
    word="stations",
    code="dis",
    columns=(
        Column("capacity", "duv", "number"),
        Column("region", "luf", "text"),
        Column("income", "mus", "number"),
        Column("rent", "fup", "number"),
        Column("state", "kal", "state"),
        Column("country", "gek", "text"),
        Column("area", "nem", "number"),
    ),
    states=(("open", 92), ("closed", 37)),
    metrics=(("profit", "mus - fup"),),
)

COMPANY = Schema(
    tables=(RENTALS, CUSTOMERS, STATIONS, ORDERS, BIKES),
    joins=((3, 1, "seg"), (0, 1, "tok"), (0, 4, "bes"), (4, 2, "pox")),
    date_format="compact",
)

# What no labelled pair may draw on. A held-out table takes its columns, states and joins along.
# "never broken" is the house rule of bikes: labelled pairs join bikes but never ask about them, so
# that the rule, and with it the states of bikes, is in the prompt alone.
HELD_OUT_TABLES = ("stations",)
HELD_OUT_COLUMNS = ("language", "discount", "start", "color", "speed")
HELD_OUT_NAMES = ("urgent", "turnover", "never broken")


def held_out() -> frozenset[str]:
    """Private codes, and names of states, metrics and rules, that no labelled pair draws on."""
    tables = [t.code for t in COMPANY.tables if t.word in HELD_OUT_TABLES]
    columns = [c.code for t in COMPANY.tables for c in t.columns if c.word in HELD_OUT_COLUMNS]
    return frozenset([*tables, *columns, *HELD_OUT_NAMES])


def codes() -> frozenset[str]:
    """Every private code: of tables, columns and join keys."""
    return frozenset(
        [t.code for t in COMPANY.tables]
        + [c.code for t in COMPANY.tables for c in t.columns]
        + [key for _, _, key in COMPANY.joins]
    )


def draws_on(question: Question) -> frozenset[str]:
    """Everything that must be known to answer: `uses`, and the codes within states and formulas."""
    return question.uses | (codes() & set(question.sql.split()))
