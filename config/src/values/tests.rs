//! The grammar of each value, at its bounds and against its schema.

use super::*;
use proptest::prelude::*;
use regex::Regex;

fn matches<T: JsonSchema>(text: &str) -> bool {
    let schema = T::json_schema(&mut SchemaGenerator::default()).to_value();
    Regex::new(schema["pattern"].as_str().unwrap()).unwrap().is_match(text)
}

proptest! {
    #[test]
    fn patterns_of_the_schema_agree_with_the_parsers(
        size in "[0-9]{0,6}[ ]?([kKmMgGtTbBx]([iI]?[bB])?)?", compress in "(none|zstd|gzip)(:[0-9-]{0,3})?",
    ) {
        prop_assert_eq!(matches::<BlockSize>(&size), parse_size(&size).is_ok());
        prop_assert_eq!(matches::<Compression>(&compress), compress.parse::<Compression>().is_ok());
    }

    #[test]
    fn what_is_shown_reads_back(bytes in 1_u64.., level in 1..=19_i32, millis in PAUSE) {
        prop_assert_eq!(Rate(bytes).to_string().parse(), Ok(Rate(bytes)));
        prop_assert_eq!(Room(bytes).to_string().parse(), Ok(Room(bytes)));
        prop_assert_eq!(Pause(millis).to_string().parse(), Ok(Pause(millis)));
        prop_assert!(matches::<Pause>(&Pause(millis).to_string()));
        let zstd = Compression::Zstd { level };
        prop_assert_eq!(zstd.to_string().parse(), Ok(zstd));
    }

    #[test]
    fn sizes_are_a_number_times_a_unit(number: u64, unit in 0..5_usize) {
        let (shift, names) = [(0, ["", "b", "B"]), (10, ["K", "KiB", "kib"]), (20, ["M", "MiB", "mIb"]),
                              (30, ["G", "GiB", "gib"]), (40, ["T", "TiB", "tib"])][unit];
        for name in names {
            let expect = u128::from(number) << shift;
            prop_assert_eq!(parse_size(&format!("{number}{name}")).ok(), u64::try_from(expect).ok());
        }
    }
}

#[test]
fn recipients_have_their_form_and_no_message_repeats_one() {
    let good = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let read = |text: &str| serde_json::from_str::<RecipientList>(text);
    assert_eq!(read(&format!("{good:?}")).unwrap().as_slice(), [good]);
    assert_eq!(read(&format!("[{good:?}, {good:?}]")).unwrap().as_slice().len(), 2);
    let pattern = RecipientList::json_schema(&mut SchemaGenerator::default()).to_value();
    let pattern = Regex::new(pattern["pattern"].as_str().unwrap()).unwrap();
    assert!(pattern.is_match(good));
    for bad in [
        &good[1..],
        &good[..61],
        &good.to_uppercase(),
        &good.replace("ql3z", "qb1o"),
        "AGE-SECRET-KEY-1QQ",
        "",
    ] {
        assert!(!pattern.is_match(bad), "{bad}");
        for text in [format!("{bad:?}"), format!("[{bad:?}]")] {
            let error = read(&text).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
    assert!(read("[]").is_err() && read("{}").is_err());
    assert!("etc/x".parse::<FilePath>().is_err() && "/etc/x".parse::<FilePath>().is_ok());
}

#[test]
fn no_signs_spaces_fractions_or_decimal_units() {
    for text in ["", "K", "+1", "-1", " 1", "1 ", "1 K", "1.5G", "1KB", "1kB", "0x10", "1_000", "٣", "1e3"] {
        assert!(parse_size(text).is_err(), "{text}");
    }
    assert_eq!(parse_size("007K"), Ok(7 << 10));
}

#[test]
fn bounds_hold_at_both_ends() {
    assert!("2KiB".parse::<BlockSize>().is_err() && "4MiB".parse::<BlockSize>().is_err());
    assert!("4KiB".parse::<BlockSize>().is_ok() && "2MiB".parse::<BlockSize>().is_ok());
    assert!("zstd:0".parse::<Compression>().is_err() && "zstd:20".parse::<Compression>().is_err());
    assert!("0".parse::<Workers>().is_err() && "257".parse::<Workers>().is_err());
    assert!("01".parse::<Workers>().is_err() && "+1".parse::<Workers>().is_err());
    assert_eq!("0".parse::<Room>().map(Room::get), Ok(0));
    assert!("99ms".parse::<Pause>().is_err() && "61s".parse::<Pause>().is_err());
    assert_eq!("100ms".parse::<Pause>().map(Pause::millis), Ok(100));
    assert_eq!("60s".parse::<Pause>().map(Pause::millis), Ok(60_000));
    for bad in ["", "s", "ms", "2", "2m", " 2s", "+2s", "02s", "2.5s", "2S"] {
        assert!(bad.parse::<Pause>().is_err() && !matches::<Pause>(bad), "{bad}");
    }
}
