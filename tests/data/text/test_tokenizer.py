from solo.data.text import expand_tokens


def test_ranges_in_braces_are_written_out():
    assert expand_tokens(["<vision>", "<loc_{9..11}>", "a{1..2}b{3..4}", "{x}", "<{2..1}>"]) == (
        "<vision>",
        *("<loc_9>", "<loc_10>", "<loc_11>"),
        *("a1b3", "a1b4", "a2b3", "a2b4"),
        "{x}",
    )
