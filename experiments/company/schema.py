"""The company's database, written out: a firm that sells and rents bicycles.

Pre-training draws schemas at random and never saw this one. What its words mean, and which rows
a metric leaves out, stands in the prompt alone.
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
        Column("archived", "pib", "flag"),
        Column("credits", "piv", "number"),
        Column("bonus", "guk", "number"),
    ),
    metrics=(("value", "rux + piv"), ("effort", "rux - guk")),
)
ORDERS = Table(
    word="orders",
    code="sof",
    columns=(
        Column("date", "gil", "date"),
        Column("price", "mes", "number"),
        Column("category", "bov", "text"),
        Column("quantity", "dug", "number"),
        Column("cancelled", "zer", "flag"),
        Column("shipped", "fib", "flag"),
        Column("discount", "lak", "number"),
        Column("urgent", "kap", "flag"),
    ),
    metrics=(("revenue", "mes * dug * ( 1 - zer )"), ("margin", "mes - lak")),
)
RENTALS = Table(
    word="rentals",
    code="tig",
    columns=(
        Column("hours", "vam", "number"),
        Column("grade", "sev", "text"),
        Column("start", "zot", "date"),
        Column("fee", "rud", "number"),
        Column("paid", "fak", "flag"),
        Column("distance", "mex", "number"),
        Column("expired", "nis", "flag"),
        Column("cost", "las", "number"),
    ),
    metrics=(("turnover", "rud * vam * ( 1 - nis )"),),
)
BIKES = Table(
    word="bikes",
    code="zik",
    columns=(
        Column("brand", "lep", "text"),
        Column("weight", "tul", "number"),
        Column("color", "gar", "text"),
        Column("broken", "bam", "flag"),
        Column("speed", "vog", "number"),
        Column("material", "neb", "text"),
        Column("reserved", "pon", "flag"),
        Column("size", "zeg", "number"),
    ),
    metrics=(("load", "tul + zeg"),),
)
STATIONS = Table(
    word="stations",
    code="dis",
    columns=(
        Column("capacity", "duv", "number"),
        Column("region", "luf", "text"),
        Column("income", "mus", "number"),
        Column("rent", "fup", "number"),
        Column("open", "kal", "flag"),
        Column("country", "gek", "text"),
        Column("area", "nem", "number"),
        Column("seats", "sat", "number"),
    ),
    metrics=(("profit", "mus - fup"),),
)

COMPANY = Schema(
    tables=(RENTALS, CUSTOMERS, STATIONS, ORDERS, BIKES),
    joins=((0, 1, "seg"), (2, 1, "seg"), (3, 1, "seg"), (4, 1, "seg")),
    date_format="compact",
)

# What no labelled pair may draw on. A held-out table takes its columns, metric and join along.
HELD_OUT_TABLES = ("stations",)
HELD_OUT_COLUMNS = ("language", "discount", "start", "color", "speed", "urgent", "broken")
HELD_OUT_NAMES = ("turnover", "margin")


def held_out() -> frozenset[str]:
    """Private codes, and names of metrics, that no labelled pair draws on."""
    tables = [t.code for t in COMPANY.tables if t.word in HELD_OUT_TABLES]
    columns = [c.code for t in COMPANY.tables for c in t.columns if c.word in HELD_OUT_COLUMNS]
    return frozenset([*tables, *columns, *HELD_OUT_NAMES])


def codes(schema: Schema = COMPANY) -> frozenset[str]:
    """Every private code: of tables, columns and join keys."""
    return frozenset(
        [t.code for t in schema.tables]
        + [c.code for t in schema.tables for c in t.columns]
        + [key for _, _, key in schema.joins]
    )


def draws_on(question: Question, schema: Schema = COMPANY) -> frozenset[str]:
    """Everything that must be known to answer: `uses`, and the codes within formulas."""
    return question.uses | (codes(schema) & set(question.sql.split()))
