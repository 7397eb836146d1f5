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
    fn patterns_of_times_names_and_addresses_agree_with_the_parsers(
        time in "[0-9]{0,2}[ .]?(s|m|h|d|w|ms|min|)", name in "[a-zA-Z0-9_.-]{0,4}[ /ü]?[a-z.-]{0,2}",
        address in "(127\\.0\\.0\\.1|\\[::1\\]|10\\.0\\.0\\.1|localhost|)(:|)[0-9]{0,4}",
        place in "(/|s3://|tape:|tape:/|file:|)[a-z/]{0,5}",
    ) {
        prop_assert_eq!(matches::<Window>(&time), time.parse::<Window>().is_ok(), "{}", time);
        prop_assert_eq!(matches::<Interval>(&time), time.parse::<Interval>().is_ok(), "{}", time);
        prop_assert_eq!(matches::<Name>(&name), name.parse::<Name>().is_ok(), "{}", name);
        prop_assert_eq!(matches::<LoopbackAddress>(&address), address.parse::<LoopbackAddress>().is_ok(), "{}", address);
        // The pattern may take more than the parser; never less.
        prop_assert!(matches::<MediumAddress>(&place) || place.parse::<MediumAddress>().is_err(), "{}", place);
    }

    #[test]
    fn what_is_shown_reads_back(bytes in 1_u64.., level in 1..=19_i32, millis in PAUSE) {
        prop_assert_eq!(ByteRate(bytes).to_string().parse(), Ok(ByteRate(bytes)));
        prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        prop_assert_eq!(PauseDuration(millis).to_string().parse(), Ok(PauseDuration(millis)));
        prop_assert!(matches::<PauseDuration>(&PauseDuration(millis).to_string()));
        if let Ok(window) = format!("{}s", bytes % 300_000_000).parse::<Window>() {
            prop_assert_eq!(window.to_string().parse(), Ok(window));
            prop_assert_eq!(window.get().as_secs(), bytes % 300_000_000);
        }
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
fn times_are_a_number_times_a_unit() {
    for (text, seconds, shown) in [
        ("90s", 90, "90s"),
        ("60s", 60, "1m"),
        ("15m", 900, "15m"),
        ("24h", 86_400, "1d"),
        ("2w", 1_209_600, "14d"),
        ("3660d", 316_224_000, "3660d"),
    ] {
        let interval: Interval = text.parse().unwrap();
        assert_eq!((interval.get().as_secs(), interval.to_string().as_str()), (seconds, shown));
        assert_eq!(text.parse::<Window>().map(|window| window.get().as_secs()), Ok(seconds));
    }
    for bad in [
        "",
        "s",
        "5",
        "-5m",
        "+5m",
        "05m",
        "1.5h",
        "5 m",
        "5M",
        "5min",
        "3661d",
        "99999999999999999999s",
        "٣m",
    ] {
        assert!(bad.parse::<Interval>().is_err() && bad.parse::<Window>().is_err(), "{bad}");
    }
    assert!("0".parse::<Interval>().is_err() && "0s".parse::<Interval>().is_err());
    assert!("0".parse::<Window>().unwrap().is_zero() && "0d".parse::<Window>().unwrap().is_zero());
}

#[test]
fn places_have_a_kind_and_no_secrets() {
    let kind = |text: &str| text.parse::<MediumAddress>().map(|address| address.kind());
    assert_eq!(kind("/backup"), Ok(MediumKind::Directory));
    assert_eq!(kind("s3://bucket/a"), Ok(MediumKind::ObjectStore));
    assert_eq!(kind("tape:/dev/nst0"), Ok(MediumKind::Tape));
    for bad in [
        "",
        "-",
        "backup",
        "./backup",
        "s3://",
        "s3:/x",
        "tape:nst0",
        "tape:/dev/nst0#latest",
        "http://x/y",
        "/a\nb",
    ] {
        assert!(kind(bad).is_err(), "{bad}");
    }
    for secret in ["s3://AKIA:hunter2@bucket/x", "s3://hunter2@bucket", "https://me:hunter2@host/x"] {
        assert!(!kind(secret).unwrap_err().contains("hunter2"), "{secret}");
    }
}

#[test]
fn a_command_is_a_program_by_its_path() {
    let read =
        |text: &str| serde_json::from_str::<CommandLine>(text).map(|command| command.as_slice().to_vec());
    assert_eq!(read(r#"["/bin/x", "-a b", 5]"#).unwrap(), ["/bin/x", "-a b", "5"]);
    assert_eq!(read(r#""/bin/x""#).unwrap(), ["/bin/x"]);
    for bad in ["[]", r#"["x"]"#, r#""/bin/x -a""#, r#"["/bin/x", "\u0000"]"#, "{}", r#"["/bin/x", {}]"#] {
        assert!(read(bad).is_err(), "{bad}");
    }
    assert!(serde_json::from_str::<List<Name>>(&format!("[{}]", vec!["\"n\""; 1001].join(","))).is_err());
    assert_eq!(serde_json::from_str::<List<Name>>("\"n\"").unwrap().len(), 1);
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
    assert_eq!("0".parse::<ByteSize>().map(ByteSize::get), Ok(0));
    assert!("99ms".parse::<PauseDuration>().is_err() && "61s".parse::<PauseDuration>().is_err());
    assert_eq!("100ms".parse::<PauseDuration>().map(PauseDuration::millis), Ok(100));
    assert_eq!("60s".parse::<PauseDuration>().map(PauseDuration::millis), Ok(60_000));
    for bad in ["", "s", "ms", "2", "2m", " 2s", "+2s", "02s", "2.5s", "2S"] {
        assert!(bad.parse::<PauseDuration>().is_err() && !matches::<PauseDuration>(bad), "{bad}");
    }
}
