"""Files: errors of JSON."""

import json

import pytest

from r1mini.infra.files import json_error


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"a": 1,}', (1, "column 9: a comma before '}'")),
        ("[1,\n]", (2, "column 1: a comma before ']'")),
        ("[1,,2]", (1, "column 4: unexpected ','")),
        ("[,1]", (1, "column 2: unexpected ','")),
        ("[1 2]", (1, "column 4: unexpected '2'")),
        ('{"a": 1', (1, "column 8: the text ends too early")),
        ("", (1, "column 1: the text ends too early")),
        ("{'a': 1}", (1, 'column 2: unexpected "\'"')),
        ('"a\x01b"', (1, "column 3: a control character in a string")),
        ('{"a": "b', (1, "column 7: a string without an end")),
        ('{}\n{"a": 1}', (2, "column 1: more text after the value")),
        ('{"a": "\\q"}', (1, "column 8: an invalid escape in a string")),
        ("9" * 5000, (1, "an integer of more than 4300 digits")),
        ("[" * 100_000, (1, "nested too deeply")),
    ],
    ids=lambda value: str(value)[:12],
)
def test_json_errors_are_worded_alike_on_every_python(text, reason):
    with pytest.raises((ValueError, RecursionError)) as caught:
        json.loads(text)
    assert json_error(caught.value) == reason
