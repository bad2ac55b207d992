from dataclasses import dataclass
from types import SimpleNamespace

from small_kinds import KINDS

from kairosbuild.recipe.fields import infos, text, written
from kairosbuild.recipe.reference import reference

MANUAL = reference(KINDS)


def test_every_field_of_every_kind_has_its_row():
    for name, kind in KINDS.items():
        section = MANUAL.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for field, info in infos(kind.Spec).items():
            row = next(line for line in section.splitlines() if line.startswith(f"| `{written(field)}` |"))
            assert info.doc in row


def test_defaults_limits_choices_and_products():
    assert "| `count` | whole number | `1` | How many. (at least 1, at most 9) |" in MANUAL
    assert "| `release` | `42`, `43`, `rawhide` | `43` | A release. |" in MANUAL
    assert "| `layers` | list of nodes that gives `layer` | required | Its layers. (at least 1) |" in MANUAL
    assert "| `retries` | whole number | `0` | How often. Not part of the key. |" in MANUAL
    assert "| `quick` | true or false | `false` | Hurry. |" in MANUAL
    assert "Produces: `image`." in MANUAL
    assert "### layer: pieces" in MANUAL


def test_a_bar_does_not_break_the_table():
    @dataclass(frozen=True)
    class Spec:
        """Odd."""

        a: str = text("this | that")

    assert "this \\| that" in reference({"odd": SimpleNamespace(Spec=Spec, produces="file")})


def test_order_of_kinds_does_not_matter():
    assert reference(dict(reversed(KINDS.items()))) == MANUAL


def test_settings_are_in_it():
    assert "## BUILD.yaml" in MANUAL and "| `mirrors` |" in MANUAL and "| `from` |" in MANUAL
