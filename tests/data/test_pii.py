"""Personal data: found next to Chinese characters and digits, left alone where a checksum says no, given back exactly."""

import os
import random
import re
import stat
import time

import pytest

from tutelage.core.errors import UserError
from tutelage.data.pii import (
    KINDS,
    KeyFile,
    KeyRow,
    Redactor,
    find_pii,
    identity_card_holds,
    luhn_holds,
    read_key,
    redact,
    restore,
)

FOUND = [  # text, kind, what must be found
    ("write to john.smith+news@mail.example.co.uk.", "EMAIL", "john.smith+news@mail.example.co.uk"),
    ("邮箱zhangwei@example.com谢谢", "EMAIL", "zhangwei@example.com"),
    ("电邮a1@example.cn1380", "EMAIL", "a1@example.cn"),
    ("<a_b@example.org>", "EMAIL", "a_b@example.org"),
    ("邮箱：ａｂｃ＠ｅｘａｍｐｌｅ．ｃｏｍ", "EMAIL", "ａｂｃ＠ｅｘａｍｐｌｅ．ｃｏｍ"),  # full-width
    ("我的电话13800138000谢谢", "PHONE", "13800138000"),
    ("手机：138-0013-8000。", "PHONE", "138-0013-8000"),
    ("手机138 0013 8000", "PHONE", "138 0013 8000"),
    ("请拨打+86 13800138000", "PHONE", "+86 13800138000"),
    ("请拨打8613800138000转告", "PHONE", "8613800138000"),
    ("电话１３８００１３８０００", "PHONE", "１３８００１３８０００"),
    ("座机010-62771234转8001", "PHONE", "010-62771234"),
    ("call +1 415 555 2671 20 times", "PHONE", "+1 415 555 2671"),
    ("call (415) 555-2671.", "PHONE", "(415) 555-2671"),
    ("call 415-555-2671, please", "PHONE", "415-555-2671"),
    ("ring +44 20 7946 0958", "PHONE", "+44 20 7946 0958"),
    ("ring +49 (30) 901820", "PHONE", "+49 (30) 901820"),
    ("身份证11010519491231002X，谢谢", "ID_CARD", "11010519491231002X"),
    ("身份证号110105 19491231 002x", "ID_CARD", "110105 19491231 002x"),
    ("card 4111 1111 1111 1111 20 items", "CARD", "4111 1111 1111 1111"),
    ("card 4111-1111-1111-1111", "CARD", "4111-1111-1111-1111"),
    ("amex 3782 822463 10005", "CARD", "3782 822463 10005"),
    ("卡号6222021234567890128号", "CARD", "6222021234567890128"),
    ("SSN 078-05-1120.", "SSN", "078-05-1120"),
    ("from 203.0.113.7.", "IP", "203.0.113.7"),
    ("地址192.168.1.20在线", "IP", "192.168.1.20"),
    ("at 2001:db8:85a3::8a2e:370:7334, port 80", "IP", "2001:db8:85a3::8a2e:370:7334"),
]

LEFT_ALONE = [
    "The year 2021 has 365 days and 3.14159265358979 is pi.",
    "2024年1月15日10:30:45，共1234567890人",
    "1700000000000000 microseconds",  # 16 digits, begins with 1
    "4111 1111 1111 1112",  # Luhn says no
    "6222021234567890127",  # Luhn says no
    "身份证110105194912310021",  # checksum says no
    "身份证110105194913310025",  # there is no month 13
    "000-12-3456 and 666-12-3456 and 912-34-5678",  # never issued
    "chapter 12-34-5678",
    "127.0.0.1 and 0.0.0.0 and 255.255.255.0",  # nobody's address
    "1.2.3.4.5 and 300.1.1.1",
    "std::vector<int>::iterator, 12:30:45, 00:1B:44:11:3A:B7",
    "order no. A13800138000B",
    "a @ b, @user, user@localhost, 3@5",
    "12800138000",  # no such mobile prefix
    "0.13800138000",  # a fraction
    "123-456-7890",  # no area code begins with 1
]


@pytest.mark.parametrize(("text", "kind", "what"), FOUND)
def test_finds(text, kind, what):
    assert [(text[start:end], found) for start, end, found in find_pii(text)] == [(what, kind)]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_leaves_alone(text):
    assert find_pii(text) == []


def test_every_kind_is_in_the_table():
    assert {kind for _, kind, _ in FOUND} == set(KINDS)


def test_identity_card_against_the_example_of_the_standard_and_all_wrong_check_characters():
    # GB 11643-1999, annex: 11010519491231002X and 440524188001010014.
    for number in ("11010519491231002X", "440524188001010014"):
        right = [last for last in "0123456789X" if identity_card_holds(number[:-1] + last)]
        assert right == [number[-1]]


def test_luhn_against_published_test_numbers_and_every_single_wrong_digit():
    for number in ("4111111111111111", "5555555555554444", "378282246310005", "30569309025904", "3530111333300000"):
        assert luhn_holds(number)
        for place, digit in enumerate(number):
            for other in set("0123456789") - {digit}:
                assert not luhn_holds(number[:place] + other + number[place + 1 :])


def test_the_same_address_gets_the_same_placeholder_in_every_message():
    redactor = Redactor()
    assert redactor.redact("a@example.org wrote to b@example.org") == "[EMAIL_1] wrote to [EMAIL_2]"
    assert redactor.redact("回复a@example.org，电话13800138000") == "回复[EMAIL_1]，电话[PHONE_1]"
    assert redactor.rows == (
        KeyRow("[EMAIL_1]", "EMAIL", "a@example.org"),
        KeyRow("[EMAIL_2]", "EMAIL", "b@example.org"),
        KeyRow("[PHONE_1]", "PHONE", "13800138000"),
    )


def test_a_placeholder_that_the_text_holds_already_is_not_given_out():
    text = "Write [EMAIL_1] where it says c@example.org."
    redacted, key = redact(text)
    assert redacted == "Write [EMAIL_1] where it says [EMAIL_2]."
    assert restore(redacted, key) == text


def test_languages_choose_national_formats_only():
    text = "078-05-1120, 010-62771234, a@example.org"
    assert redact(text, lang="zh")[0] == "078-05-1120, [PHONE_1], [EMAIL_1]"
    assert redact(text, lang="en")[0] == "[SSN_1], 010-62771234, [EMAIL_1]"
    assert redact(text)[0] == "[SSN_1], [PHONE_1], [EMAIL_1]"


def test_restore_gives_back_exactly_what_was_there():
    draw = random.Random(3)
    fillers = ["我的", "call ", "\n", "，", " [EMAIL_1]", "[PHONE_2]", "12", " 😀 ", "e\u0301", "", "]["]
    redacted_something = 0
    for _ in range(400):
        text = "".join(draw.choice(fillers) + draw.choice(FOUND)[2] for _ in range(draw.randint(1, 6)))
        redacted, key = redact(text)
        redacted_something += redacted != text
        assert restore(redacted, key) == text
        assert not any(row.original in redacted for row in key if row.kind == "EMAIL")
    assert redacted_something > 350


def test_originals_that_look_like_placeholders_are_not_restored_twice():
    key = (KeyRow("[EMAIL_1]", "EMAIL", "[PHONE_1]"), KeyRow("[PHONE_1]", "PHONE", "x"))
    assert restore("[EMAIL_1] [PHONE_1] [IP_9]", key) == "[PHONE_1] x [IP_9]"


@pytest.mark.skipif(os.name == "nt", reason="file modes are a POSIX matter")
def test_key_file_is_for_the_owner_alone_even_when_it_was_open_before(tmp_path):
    path = tmp_path / "key.jsonl"
    path.write_text("")
    path.chmod(0o644)
    key = KeyFile(path)
    key.write("r1", [KeyRow("[EMAIL_1]", "EMAIL", "张@example.org")])
    key.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path, "r1") == (KeyRow("[EMAIL_1]", "EMAIL", "张@example.org"),)
    assert read_key(path, "r2") == ()


def test_two_records_with_one_digest_are_not_guessed_at(tmp_path):
    key = KeyFile(tmp_path / "key.jsonl")
    for name in ("a", "b"):
        key.write("r1", [KeyRow("[EMAIL_1]", "EMAIL", f"{name}@example.org")])
    key.close()
    with pytest.raises(UserError, match=re.escape("differed only in [EMAIL_1]")):
        read_key(tmp_path / "key.jsonl", "r1")


def test_long_hostile_texts_are_read_in_linear_time():
    for piece in ("a", "1", "a.", "1 ", "a@", "1:", "+1-"):
        start = time.process_time()
        assert find_pii(piece * (300_000 // len(piece))) == []
        assert time.process_time() - start < 5  # linear: a tenth of a second; quadratic: many minutes
