"""Everyday words and private codes from which random schemas are drawn."""

TABLES = """
    orders customers products invoices employees projects tickets books courses students teachers
    machines trucks routes hotels rooms flights pilots farms fields shops suppliers payments
    contracts sensors readings patients doctors visits museums paintings songs albums players teams
    matches events sponsors members loans bikes stations rentals parts repairs
""".split()

NUMBERS = """
    price quantity weight height age score salary budget distance duration speed rating stock
    discount length width depth power volume capacity seats pages points goals rent fee tax bonus
    hours days cost area income population level size temperature pressure credits votes
""".split()

TEXTS = {
    "city": "Berlin Paris Rome Madrid Oslo Vienna Lisbon Dublin Prague Athens Zurich Milan".split(),
    "country": """
        France Spain Italy Norway Austria Japan Brazil Canada Kenya India Chile Peru
    """.split(),
    "color": "red blue green black white yellow silver brown orange purple pink gold".split(),
    "brand": "Acme Nova Orion Zenith Atlas Delta Vega Lumen Titan Echo Apex Polar".split(),
    "category": "garden kitchen office sport music travel health school winter summer".split(),
    "material": "wood steel glass cotton leather plastic paper stone copper rubber".split(),
    "language": "English German French Spanish Polish Dutch Greek Arabic Korean Hindi".split(),
    "department": "sales finance legal support design research security logistics".split(),
    "region": "north south east west central coastal alpine island".split(),
    "genre": "jazz rock opera drama comedy poetry history mystery".split(),
    "name": "Anna Ben Clara David Emma Felix Grace Hugo Iris Jonas Karl Lena".split(),
    "grade": "gold bronze basic premium standard deluxe economy luxury".split(),
}

DATES = "date deadline birthday start".split()
FLAGS = """
    cancelled shipped open active closed pending approved rejected new archived urgent paid late
    broken reserved expired public private frozen draft
""".split()
METRICS = "revenue profit value load margin density effort exposure turnover output".split()

NUMBER_VALUES = (*range(1, 10), *range(10, 100, 5), *range(100, 1000, 50))
YEARS = tuple(range(2015, 2025))


def _codes() -> tuple[str, ...]:
    words = """
        log bus cut run tan pan ten red sum max min has not how for top new jan key tax ben
    """.split()
    syllables = (a + v + b for a in "bdfgklmnprstvz" for v in "aeiou" for b in "bdfgklmnprstvx")
    return tuple(s for i, s in enumerate(syllables) if i % 3 == 0 and s not in words)


CODES = _codes()
"""Private names: three letters, meaningless, one token each in the nano tokenizer."""
