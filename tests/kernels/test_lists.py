"""Module lists as the files that systemd, OpenRC and modprobe read."""

from kairosbuild.kernels import lists


def test_files_are_named_by_what_is_in_them() -> None:
    one = lists.files(["loop"], ["nouveau"], {"kvm": "nested=1"})
    assert len(one) == 2
    load = next(content for path, content in one.items() if "modules-load.d" in path)
    probe = next(content for path, content in one.items() if "modprobe.d" in path)
    assert load == b"loop\n"
    assert probe == b"blacklist nouveau\ninstall nouveau /bin/false\noptions kvm nested=1\n"
    assert set(lists.files(["dummy"], [], {})).isdisjoint(one)
    assert not lists.files([], [], {})


def test_what_is_no_name_and_no_argument() -> None:
    assert lists.complaint(["a b"]) and lists.complaint(["../x"]) and not lists.complaint(["a-b_1"])
    assert lists.argument_complaint(["a b"]) and lists.argument_complaint([""])
    assert not lists.argument_complaint(["quiet", 'x="a b"', "console=ttyS0,115200"])
