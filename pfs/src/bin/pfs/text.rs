//! Text as the original prints it.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use pfs::format::{Field, Seconds};

/// A time as C's `ctime` writes it, in the local time zone, without the line end.
pub(crate) fn time(seconds: Seconds) -> String {
    let local = i64::try_from(seconds.0).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    match local {
        Some(time) => time.to_zoned(TimeZone::system()).strftime("%a %b %e %H:%M:%S %Y").to_string(),
        None => format!("{seconds} s after 1970"),
    }
}

/// Fields one a line, indented by two blanks for each level, the first of which is `level`, but by one at least.
pub(crate) fn fields(fields: &[Field], level: usize, text: &mut Vec<u8>) {
    for field in fields {
        let indent = (2 * (level + field.depth)).max(1);
        text.extend(format!("{:indent$}{:<10} ", "", field.name).into_bytes());
        text.extend(field.value.text());
        text.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pfs::format::Value;

    #[test]
    fn fields_are_indented() {
        let list = [
            Field { name: "mo_type", depth: 0, value: Value::Word("inode") },
            Field { name: "in_size", depth: 1, value: Value::Number(5) },
        ];
        let mut out = Vec::new();
        fields(&list, 0, &mut out);
        fields(&list, 1, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            " mo_type    inode\n  in_size    5\n  mo_type    inode\n    in_size    5\n"
        );
    }

    #[test]
    fn a_time_beyond_the_calendar_is_a_number() {
        assert_eq!(time(Seconds(u64::MAX)), "18446744073709551615 s after 1970");
    }
}
