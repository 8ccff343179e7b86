//! Numbers as archives write them: octal and base-256 fields of headers, decimal text of PAX records, and times.
//! Nothing here overflows: a number that does not fit is none.

use std::str::from_utf8;

/// A number in a header's field: octal digits with spaces around them, ended by a zero byte, or GNU's base-256 form, a
/// two's complement whose first bit only marks the form. An empty field is 0.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.split_first() {
        Some((first, rest)) if first & 0x80 != 0 => {
            // The second bit is the sign. 95 bits at most: fields have up to 12 bytes.
            let high = i128::from(((first << 1).cast_signed()) >> 1);
            let value = rest
                .iter()
                .try_fold(high, |value, byte| value.checked_mul(256)?.checked_add(i128::from(*byte)))?;
            value.try_into().ok()
        }
        _ => {
            let text = bytes.split(|byte| *byte == 0).next()?.trim_ascii();
            text.iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

/// A whole number in decimal digits, and nothing else: no sign, no space.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_number.then(|| from_utf8(text).ok()?.parse().ok()).flatten()
}

/// A time as a PAX record has it: seconds since 1970 with a decimal fraction, perhaps negative. Nanoseconds count
/// forward from a negative second as well; decimals do not.
pub fn format_time((seconds, nanoseconds): (i64, u32)) -> String {
    let (sign, whole, fraction) = match nanoseconds {
        0 => return seconds.to_string(),
        _ if seconds < 0 => ("-", seconds.saturating_add(1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        _ => ("", seconds.unsigned_abs(), nanoseconds),
    };
    format!("{sign}{whole}.{fraction:09}")
}

/// The inverse of [`format_time`], with any number of decimals; those past the ninth are cut off, as every reader of such
/// times does.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = from_utf8(text).ok()?;
    let (digits, is_negative) = text.strip_prefix('-').map_or((text, false), |digits| (digits, true));
    let (seconds, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = decimal(seconds.as_bytes())?.try_into().ok()?;
    let nanoseconds: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(match (is_negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_octal_or_base_256() {
        let wide = |first: u8, last: &[u8]| {
            let mut field = [if first == 0xff { 0xff } else { 0 }; 12];
            field[0] = first;
            field[12 - last.len()..].copy_from_slice(last);
            super::field(&field)
        };
        for (bytes, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    123 ", Some(0o123)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"\0\0\0\0", Some(0)),
            (b"", Some(0)),
            (b"12\x0034", Some(0o12)),
            (b"0000008\0", None),
            (b"-1\0", None),
            (b"+1\0", None),
            (b"1 1\0", None),
            (b"\x80\0\0\0\0\0\0\x07", Some(7)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff", Some(0x3fff_ffff_ffff_ffff)),
            (b"\xc0\0\0\0\0\0\0\0", Some(-0x4000_0000_0000_0000)),
        ] {
            assert_eq!(field(bytes), expected, "{}", bytes.escape_ascii());
        }
        assert_eq!(wide(0x80, &i64::MAX.to_be_bytes()), Some(i64::MAX));
        assert_eq!(wide(0x80, &u64::MAX.to_be_bytes()), None);
        assert_eq!(wide(0x80, &[1, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(wide(0xff, &i64::MIN.to_be_bytes()), Some(i64::MIN));
        assert_eq!(wide(0xff, &[0x7f, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(wide(0xbf, &[0xff; 11]), None);
    }

    #[test]
    fn decimals_are_digits_alone() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"x", b"\xff", b"18446744073709551616"] {
            assert_eq!(decimal(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn times_before_1970_and_after_2038_survive() {
        for (time, text) in [
            ((0, 0), "0"),
            ((0, 500_000_000), "0.500000000"),
            ((1, 500_000_000), "1.500000000"),
            ((4_102_444_800, 1), "4102444800.000000001"),
            ((-1, 0), "-1"),
            ((-2, 500_000_000), "-1.500000000"),
            ((-1, 999_999_999), "-0.000000001"),
            ((i64::MAX, 1), "9223372036854775807.000000001"),
            ((i64::MIN, 1), "-9223372036854775807.999999999"),
        ] {
            assert_eq!(format_time(time), text);
            assert_eq!(super::time(text.as_bytes()), Some(time), "{text}");
        }
        assert_eq!(format_time((i64::MIN, 0)), i64::MIN.to_string());
        assert_eq!(time(b"7.25"), Some((7, 250_000_000)));
        assert_eq!(time(b"7.1234567899"), Some((7, 123_456_789)));
        for text in ["", "-", "x", "1.x", "1.2.3", "+1", "--1", "1e9", ".5", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }
}
