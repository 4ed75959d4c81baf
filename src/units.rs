//! Formats numbers for people: counts, sizes and durations in one style for every message.

use std::time::Duration;

/// Returns a whole number with a comma between thousands: `1,115,394`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a number and a noun that agrees with it: `1 layer`, `1,024 tokens`. The plural is formed with `s`.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Returns a size with a binary unit and one decimal: `512 B`, `54.3 MiB`, `23.9 GiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    // 1,023.95 of a unit would be printed as 1,024.0 of it
    let reaches = |unit: u64| bytes as f64 >= unit as f64 * (1023.95 / 1024.0);
    match units.into_iter().find(|(unit, _)| reaches(*unit)) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// Returns two sizes as [`size`] does, or in bytes if they differ by less than it shows.
#[must_use]
pub fn sizes(sizes: [u64; 2]) -> [String; 2] {
    let [first, second] = sizes.map(size);
    if first != second || sizes[0] == sizes[1] { [first, second] } else { sizes.map(|bytes| counted(bytes, "byte")) }
}

/// Returns a duration as a clock shows it: `2:03` or `1:02:03`.
#[must_use]
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_separated() {
        let numbers = [0, 7, 999, 1000, 12_345, 999_999, 1_115_394, u64::MAX];
        let texts = ["0", "7", "999", "1,000", "12,345", "999,999", "1,115,394", "18,446,744,073,709,551,615"];
        assert_eq!(numbers.map(count), texts);
    }

    #[test]
    fn nouns_agree_with_their_number() {
        assert_eq!([0, 1, 2, 1024].map(|n| counted(n, "token")), ["0 tokens", "1 token", "2 tokens", "1,024 tokens"]);
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        let found = [0, 1023, 1024, (1 << 20) - 1, 1 << 20, 81_559 << 20, 3 << 40].map(size);
        assert_eq!(found, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "79.6 GiB", "3.0 TiB"]);
        assert_eq!(sizes([3 << 30, 2 << 30]), ["3.0 GiB", "2.0 GiB"]);
        assert_eq!(sizes([(2 << 30) + 1, 2 << 30]), ["2,147,483,649 bytes", "2,147,483,648 bytes"]);
    }

    #[test]
    fn durations_are_clocks() {
        let seconds = [0.4, 59.6, 123.0, 3723.0];
        assert_eq!(seconds.map(|s| clock(Duration::from_secs_f64(s))), ["0:00", "1:00", "2:03", "1:02:03"]);
    }
}
