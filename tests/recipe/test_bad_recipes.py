"""A table: what is wrong in a recipe, and where that is said to be."""

import pytest

from kairosbuild.core.errors import KbuildError

HEAD = "version: 1\nname: t\nnodes:\n  base: {kind: base, image: x}\n"  # further nodes begin on line 5
DIGEST = "sha256:" + "0" * 64

WHOLE = [
    ("[1]", [("wrong-type", 1, 1)]),
    ("just text", [("wrong-type", 1, 1)]),
    ("name: t\nnodes: {}", [("missing-field", 1, 1)]),
    ("version: 1\nname: t", [("missing-field", 1, 1)]),
    ("version: 2\nname: t\nnodes: {}", [("out-of-range", 1, 10)]),
    ("version: '1'\nname: t\nnodes: {}", [("wrong-type", 1, 10)]),
    ("version: 1.0\nname: t\nnodes: {}", [("wrong-type", 1, 10)]),
    ("version: 1\nname: t\nnodez: {}\nnodes: {}", [("unknown-field", 3, 1)]),
    ("version: 1\nname: t\nnodes: []", [("wrong-type", 3, 8)]),
    ("version: 1\nname: t\nnodes:", [("wrong-type", 3, 7)]),
    ("version: 1\nname: T T\nnodes: {}", [("bad-value", 2, 7)]),
    ("version: 1\nname:\nnodes: {}", [("wrong-type", 2, 6)]),
    ("version: 1\nname: t\ninclude: [a.yaml]\nnodes: {}", [("include-outside", 3, 11)]),
    ("version: 1\nname: t\nepoch: 0\nnodes: {}", [("out-of-range", 3, 8)]),
    ("version: 1\nname: t\nepoch: 2025-01-01\nnodes: {}", [("wrong-type", 3, 8)]),
    ("version: 1\nname: t\nplatform: linux/amd46\nnodes: {}", [("bad-choice", 3, 11)]),
    ("version: 1\nname: t\nvars: [a]\nnodes: {}", [("wrong-type", 3, 7)]),
    ("version: 1\nname: t\nvars: {a: [b]}\nnodes: {}", [("wrong-type", 3, 11)]),
    ("version: 1\nname: t\nvars: {a: }\nnodes: {}", [("wrong-type", 3, 11)]),
    ("version: 1\nname: t\nvars: {1a: x}\nnodes: {}", [("bad-name", 3, 8)]),
    ("version: 1\nname: t\nvars: {a: '${b}'}\nnodes: {}", [("undefined-variable", 3, 11)]),
    ("version: 1\nname: t\nvars: {a: '${b}', b: '${a}'}\nnodes: {}", [("variable-cycle", 3, 22)]),
    ("version: 1\nname: t\nvars: {a: '${a}'}\nnodes: {}", [("variable-cycle", 3, 11)]),
]

NODES = [
    ("  x: 5\n", [("wrong-type", 5, 6)]),
    ("  x: {}\n", [("missing-field", 5, 6)]),
    ("  x: {kind: lay}\n", [("unknown-kind", 5, 13)]),
    ("  x: {kind: [layer]}\n", [("wrong-type", 5, 13)]),
    ("  x: {kind: '${base}'}\n", [("unknown-kind", 5, 13)]),
    ("  X: {kind: layer}\n", [("bad-name", 5, 3)]),
    ("  -x: {kind: layer}\n", [("bad-name", 5, 3)]),
    ("  x/y: {kind: layer}\n", [("bad-name", 5, 3)]),
    ("  x: {kind: base}\n", [("missing-field", 5, 6)]),
    ("  x: {kind: layer, instal: [a]}\n", [("unknown-field", 5, 20)]),
    ("  x: {kind: layer, install: a}\n", [("wrong-type", 5, 29)]),
    ("  x: {kind: layer, install: {a: b}}\n", [("wrong-type", 5, 29)]),
    ("  x: {kind: layer, install: [a, [b]]}\n", [("wrong-type", 5, 33)]),
    ("  x: {kind: layer, install: [a, ~, B]}\n", [("wrong-type", 5, 33), ("bad-value", 5, 36)]),
    ("  x: {kind: layer, labels: [a]}\n", [("wrong-type", 5, 28)]),
    ("  x: {kind: layer, labels: {a: {b: c}}}\n", [("wrong-type", 5, 32)]),
    ("  x: {kind: layer, labels: {a: }}\n", [("wrong-type", 5, 32)]),
    ("  x: {kind: layer, from: A}\n", [("bad-value", 5, 26)]),
    ("  x: {kind: layer, from_: a}\n", [("unknown-field", 5, 20)]),
    ("  x: {kind: layer, release: 44}\n", [("bad-choice", 5, 29)]),
    ("  x: {kind: layer, count: many}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, count: '3'}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, count: 010}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, count: 1.0}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, count: 0}\n", [("out-of-range", 5, 27)]),
    ("  x: {kind: layer, count: 10}\n", [("out-of-range", 5, 27)]),
    (f"  x: {{kind: layer, count: {'9' * 5000}}}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, quick: yes}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, quick: 'true'}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, space: 5X}\n", [("bad-size", 5, 27)]),
    ("  x: {kind: layer, space: 1.5G}\n", [("bad-size", 5, 27)]),
    ("  x: {kind: layer, space: -1}\n", [("bad-size", 5, 27)]),
    ("  x: {kind: layer, space: 2T}\n", [("out-of-range", 5, 27)]),
    ("  x: {kind: layer, wait: 5d}\n", [("bad-duration", 5, 26)]),
    ("  x: {kind: layer, permissions: 0899}\n", [("bad-mode", 5, 33)]),
    ("  x: {kind: layer, permissions: rwx}\n", [("bad-mode", 5, 33)]),
    ("  x: {kind: layer, sha256: abc}\n", [("bad-digest", 5, 28)]),
    (f"  x: {{kind: layer, sha256: {DIGEST[:-1]}A}}\n", [("bad-digest", 5, 28)]),
    (f"  x: {{kind: layer, sha256: {DIGEST.replace('256', '512')}}}\n", [("bad-digest", 5, 28)]),
    ("  x: {kind: layer, even: 3}\n", [("bad-value", 5, 26)]),
    ("  x: {kind: layer, timeout: soon}\n", [("bad-duration", 5, 29)]),
    ("  x: {kind: layer, timeout: 0}\n", [("out-of-range", 5, 29)]),
    ("  x: {kind: layer, cpu: 0.5}\n", [("wrong-type", 5, 25)]),
    ("  x: {kind: layer, memory: lots}\n", [("bad-size", 5, 28)]),
    ("  x: {kind: layer, tags: slow}\n", [("wrong-type", 5, 26)]),
    ("  x: {kind: layer, doc: [a]}\n", [("wrong-type", 5, 25)]),
    ("  x: {kind: layer, install: ['${no}']}\n", [("undefined-variable", 5, 30)]),
    ("  x: {kind: layer, from: '${'}\n", [("bad-variable", 5, 26)]),
    ("  x: {kind: layer, from: '${no', quick: maybe}\n", [("bad-variable", 5, 26), ("wrong-type", 5, 41)]),
    ("  x: {kind: layer, on: bass}\n", [("missing-node", 5, 24)]),
    ("  x: {kind: layer, on: [base]}\n", [("wrong-type", 5, 24)]),
    ("  x: {kind: layer, on: x}\n", [("self-reference", 5, 24)]),
    ("  x: {kind: layer, inputs: {a: bass, b: x}}\n", [("missing-node", 5, 32), ("self-reference", 5, 41)]),
    ("  x: {kind: image, layers: []}\n", [("too-few", 5, 28)]),
    ("  x: {kind: image, layers: base}\n", [("wrong-type", 5, 28)]),
    ("  x: {kind: image, layers: [base]}\n  y: {kind: layer, on: x}\n", [("wrong-product", 6, 24)]),
    ("  x: {kind: image, layers: [base, base]}\n", [("kind-check", 5, 35)]),
    ("  x: {kind: layer, piece: [a]}\n", [("wrong-type", 5, 27)]),
    ("  x: {kind: layer, piece: {}}\n", [("missing-field", 5, 27)]),
    ("  x: {kind: layer, piece: {source: tree, mod: 1}}\n", [("unknown-field", 5, 42)]),
    ("  x: {kind: layer, piece: {source: tree, after: bass}}\n", [("missing-node", 5, 49)]),
    (
        "  x: {kind: layer, pieces: [{source: tree}, {mode: 9}]}\n",
        [("missing-field", 5, 45), ("bad-mode", 5, 52)],
    ),
    ("  x: {kind: layer, pieces: {source: tree}}\n", [("wrong-type", 5, 28)]),
    ("  x: {kind: layer, named: {a: {source: nope}}}\n", [("missing-source", 5, 40)]),
    ("  x: {kind: layer, tree: /etc}\n", [("source-outside", 5, 26)]),
    ("  x: {kind: layer, tree: ../workspace0}\n", [("source-outside", 5, 26)]),
    ("  x: {kind: layer, tree: tree/../../x}\n", [("source-outside", 5, 26)]),
    ("  x: {kind: layer, tree: outward}\n", [("source-outside", 5, 26)]),
    ("  x: {kind: layer, tree: outward/secret}\n", [("source-outside", 5, 26)]),
    ("  x: {kind: layer, tree: dangling}\n", [("missing-source", 5, 26)]),
    ("  x: {kind: layer, tree: tree/etc/issue}\n", [("missing-source", 5, 26)]),
    ("  x: {kind: layer, tree: tree/etc/motd/x}\n", [("missing-source", 5, 26)]),
    (f"  x: {{kind: layer, tree: {'n' * 5000}}}\n", [("missing-source", 5, 26)]),
    ('  x: {kind: layer, tree: "a\\nb"}\n', [("bad-path", 5, 26)]),
    ("  x: {kind: layer, extra: {a: nope, b: /x}}\n", [("missing-source", 5, 31), ("source-outside", 5, 40)]),
    ("  x: {kind: layer, on: y}\n  y: {kind: layer, on: x}\n", [("cycle", 5, 24)]),
    ("publish: {targets: [bass]}\n", [("missing-node", 5, 21)]),
    ("publish: {requires: [base, test]}\n", [("missing-node", 5, 28)]),
    ("publish: {targets: base}\n", [("wrong-type", 5, 20)]),
    ("publish: {tags: [a/b]}\n", [("bad-value", 5, 18)]),
    ("publish: {tags: []}\n", [("too-few", 5, 17)]),
    ("publish: {target: [base]}\n", [("unknown-field", 5, 11)]),
    ("publish:\n", [("wrong-type", 5, 9)]),
]


@pytest.mark.parametrize(("text", "expected"), WHOLE, ids=[text[:60] for text, _ in WHOLE])
def test_bad_top(read, problems, text, expected):
    assert problems(read, text) == expected


@pytest.mark.parametrize(("text", "expected"), NODES, ids=[text.strip()[:60] for text, _ in NODES])
def test_bad_node(read, problems, text, expected):
    assert problems(read, HEAD + text) == expected


def test_all_problems_at_once(read, problems):
    text = (
        "version: 3\nnmae: t\nnodes:\n"
        "  a: {kind: layer, on: b, sise: 1, count: x}\n"
        "  b: {kind: layer, on: a, tree: /x}\n"
        "  c: {kind: imag}\n"
        "  d: {kind: layer, on: c}\n"
        "publish: {targets: [e]}\n"
    )
    assert problems(read, text) == [
        ("out-of-range", 1, 10),
        ("unknown-field", 2, 1),
        ("cycle", 4, 24),
        ("unknown-field", 4, 27),
        ("wrong-type", 4, 43),
        ("source-outside", 5, 33),
        ("unknown-kind", 6, 13),
        ("missing-node", 8, 21),
    ]


def test_what_is_wrong_with_the_yaml_is_told_with_the_rest(read, problems):
    text = "version: 1\nname: !x t\nname: u\nnodez: {}\n<<: {}\nnodes: {}\n"
    assert problems(read, text) == [
        ("yaml-tag", 2, 7),
        ("duplicate-key", 3, 1),
        ("unknown-field", 4, 1),
        ("yaml-key", 5, 1),
    ]


HINTS = [
    ("  x: {kind: layer, instal: [a]}\n", "'install'"),
    ("  x: {kind: layer, timeot: 5}\n", "'timeout'"),
    ("  x: {kind: lay}\n", "'layer'"),
    ("  x: {kind: layer, on: bass}\n", "'base'"),
    ("  x: {kind: layer, release: rawhid}\n", "'rawhide'"),
    ("  x: {kind: layer, install: vim}\n", "[vim]"),
    ("  x: {kind: layer, count: '3'}\n", "without quotes"),
    ("  x: {kind: layer, quick: yes}\n", ""),
    ("  x: {kind: layer, from: '${relaese}'}\nvars: {release: x}\n", "'release'"),
]


@pytest.mark.parametrize(("text", "hint"), HINTS, ids=[text.strip()[:50] for text, _ in HINTS])
def test_hint_says_what_would_be_right(read, text, hint):
    with pytest.raises(KbuildError) as caught:
        read(HEAD + text)
    assert hint in caught.value.hint


def test_message_begins_with_file_line_column(read):
    with pytest.raises(KbuildError) as caught:
        read(HEAD + "  x: {kind: layer, on: bass}\n")
    assert str(caught.value).startswith(
        "r.yaml:5:24: on: there is no node 'bass'\n  hint: did you mean 'base'?"
    )


def test_a_cycle_is_a_path_that_closes(read):
    nodes = "".join(f"  n{n}: {{kind: layer, on: n{(n + 1) % 4}}}\n" for n in (2, 0, 3, 1))
    with pytest.raises(KbuildError) as caught:
        read(HEAD + nodes + "  outside: {kind: layer, on: n2}\n")
    assert "n0 → n1 → n2 → n3 → n0" in caught.value.message
    assert caught.value.origin.line == 6


def test_two_cycles_are_two_problems(read, problems):
    nodes = (
        "  a: {kind: layer, on: b}\n  b: {kind: layer, on: a}\n"
        "  c: {kind: layer, on: d}\n  d: {kind: layer, on: c}\n"
    )
    assert problems(read, HEAD + nodes) == [("cycle", 5, 24), ("cycle", 7, 24)]


def test_a_long_chain_is_no_cycle_and_no_recursion(read):
    nodes = "".join(
        f"  n{n}: {{kind: layer, on: {f'n{n + 1}' if n < 4999 else 'base'}}}\n" for n in range(5000)
    )
    assert len(read(HEAD + nodes).nodes) == 5001


def test_a_broken_variable_is_told_once(read, problems):
    text = HEAD + "  x: {kind: layer, install: ['${a}', '${b}']}\nvars: {a: '${no}', b: '${a}'}\n"
    assert problems(read, text) == [("undefined-variable", 6, 11)]


def test_set_of_what_is_not_declared(read, problems):
    assert problems(read, HEAD + "vars: {release: x}\n", relase="y") == [("undefined-variable", 1, 1)]


def test_variables_cannot_blow_up(read, problems):
    lines = ["vars:", f"  a0: {'x' * 1000}"] + [f"  a{n}: '{f'${{a{n - 1}}}' * 10}'" for n in range(1, 30)]
    found = problems(read, HEAD + "\n".join(lines) + "\n")
    assert {reason for reason, _, _ in found} == {"variable-limit"}


def test_many_long_texts_cannot_blow_up(read, problems):
    many = ", ".join(["'${a}'"] * 3000)
    text = HEAD + f"  x: {{kind: base, image: y, tags: [{many}]}}\nvars: {{a: {'x' * 100_000}}}\n"
    assert {reason for reason, _, _ in problems(read, text)} == {"variable-limit"}


def test_a_missing_file_is_an_input_error(workspace, tmp_path):
    from kairosbuild.recipe.load import load

    with pytest.raises(KbuildError) as caught:
        load(tmp_path / "none.yaml", {}, workspace=workspace)
    assert (caught.value.reason, caught.value.exit_code) == ("no-recipe", 2)


def test_what_is_wrong_many_times_is_still_told_soon(read, problems):
    """Ten thousand times the same mistake: nothing here may be quadratic, or slow for each."""
    pairs = "".join(
        f"  a{n}: {{kind: layer, on: b{n}}}\n  b{n}: {{kind: layer, on: a{n}}}\n" for n in range(2000)
    )
    wrong = "".join(f"  n{n}: {{kind: layer, on: m{n}, x{n}: 1, from: '${{v{n}}}'}}\n" for n in range(3000))
    broken = "vars:\n" + "".join(f"  v{n}: '${{w{n}}}'\n" for n in range(3000))
    found = [reason for reason, _, _ in problems(read, HEAD + pairs + wrong + broken)]
    assert {reason: found.count(reason) for reason in found} == {
        "cycle": 20,
        "missing-node": 3000,
        "unknown-field": 3000,
        "undefined-variable": 3000,
    }
