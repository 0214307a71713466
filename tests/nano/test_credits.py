"""Every photograph that nano was trained on is credited, and to its author."""

import re

from live2diff.loading import NANO
from live2diff.training.photographs import PHOTOGRAPHS


def credits_by_name() -> dict[str, dict[str, str]]:
    """Read the table of PHOTOGRAPHS.md."""
    rows = [
        line.strip("| \n").split("|") for line in (NANO / "PHOTOGRAPHS.md").open() if line.startswith("|")
    ]
    header, _, *rows = [[cell.strip() for cell in row] for row in rows]
    return {row[0]: dict(zip(header, row, strict=False)) for row in rows}


def test_every_photograph_that_the_recipe_reads_has_a_credit_line():
    table = credits_by_name()
    assert PHOTOGRAPHS.keys() <= table.keys()
    for name, row in table.items():
        assert row["package"] and row["author"], name
        assert re.fullmatch("public domain|CC0 1.0|CC BY [234].0", row["licence"]), name


def test_every_image_of_gcompris_has_the_source_that_its_readme_names():
    rows = [row for row in credits_by_name().values() if row["package"].startswith("gcompris")]
    assert rows and all(row["source"].startswith("https://") for row in rows)


def test_the_model_card_counts_them_right():
    card, table = (NANO / "README.md").read_text(), credits_by_name()
    assert f"{len(table)} photographs" in card
    assert f"{len(table) - len(PHOTOGRAPHS)} come from four Debian packages" in card
