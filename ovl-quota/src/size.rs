use crate::units::Bytes;

/// Largest size that [`parse_size`] returns: Docker keeps sizes in a signed 64-bit number.
const MAX: u64 = i64::MAX as u64;

/// Reads a size as Docker's options write it: `512`, `10G`, `1.5g`, `20 MiB`.
///
/// A number, with a fraction if wanted, then optionally one of `b`, `k`, `m`, `g`, `t`, `p` in
/// either case, the last five with `b` or `ib` behind them if wanted. All are powers of 1024. One
/// space may stand before the unit. A part of a byte is dropped.
///
/// ```
/// use ovl_quota::parse_size;
///
/// assert_eq!(parse_size("10G")?, parse_size("10 gib")?);
/// assert!(parse_size("1e3").is_err());
/// # Ok::<(), ovl_quota::SizeError>(())
/// ```
///
/// # Errors
///
/// - [`SizeError::Empty`] for no text;
/// - [`SizeError::Signed`] if it begins with `-` or `+`;
/// - [`SizeError::NotANumber`] if it does not begin with a number, or the number has two points;
/// - [`SizeError::UnknownUnit`] if something else than a unit follows the number;
/// - [`SizeError::Zero`] if it is less than one byte;
/// - [`SizeError::TooLarge`] if it is more than 2^63 - 1 bytes.
///
/// # Compatibility
///
/// `RAMInBytes` of Docker's `go-units`, with these differences: 0 (which Docker takes as "no
/// limit"), signs, exponents and a space at the end are errors, too large sizes do not wrap around,
/// and fractions are exact instead of floating point.
#[doc(alias = "RAMInBytes")]
pub fn parse_size(text: &str) -> Result<Bytes, SizeError> {
    let input = || text.to_owned();
    if text.is_empty() {
        return Err(SizeError::Empty);
    }
    if text.starts_with(['-', '+']) {
        return Err(SizeError::Signed { input: input() });
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(SizeError::NotANumber { input: input() });
    }
    let Some(factor) = unit_factor(unit) else {
        return Err(SizeError::UnknownUnit {
            input: input(),
            unit: unit.to_owned(),
        });
    };
    let bytes = whole_bytes(whole, factor)
        .and_then(|bytes| bytes.checked_add(fraction_bytes(fraction, factor)))
        .filter(|&bytes| bytes <= MAX);
    match bytes {
        None => Err(SizeError::TooLarge { input: input() }),
        Some(0) => Err(SizeError::Zero { input: input() }),
        Some(bytes) => Ok(Bytes::new(bytes)),
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// There is no text.
    #[error("the size is empty; write it like `10G` or `512 MiB`")]
    Empty,
    /// The text begins with a sign.
    #[error("size {input:?} has a sign; write it like `10G` or `512 MiB`")]
    #[non_exhaustive]
    Signed {
        /// The text.
        input: String,
    },
    /// The text does not begin with a plain number.
    #[error("size {input:?} does not begin with a plain number; write it like `10G` or `1.5 GiB`")]
    #[non_exhaustive]
    NotANumber {
        /// The text.
        input: String,
    },
    /// What follows the number is not a unit.
    #[error(
        "size {input:?} has the unknown unit {unit:?}; use b, k, m, g, t or p, alone or as in `kb` \
         or `kib`, all powers of 1024"
    )]
    #[non_exhaustive]
    UnknownUnit {
        /// The text.
        input: String,
        /// What follows the number.
        unit: String,
    },
    /// The size is less than one byte.
    #[error("size {input:?} is less than one byte; for no limit, set none")]
    #[non_exhaustive]
    Zero {
        /// The text.
        input: String,
    },
    /// The size is more than 2^63 - 1 bytes.
    #[error("size {input:?} is more than {MAX} bytes")]
    #[non_exhaustive]
    TooLarge {
        /// The text.
        input: String,
    },
}

fn unit_factor(unit: &str) -> Option<u64> {
    if unit.is_empty() {
        return Some(1);
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    if unit == "b" {
        return Some(1);
    }
    let (letter, rest) = unit.split_at_checked(1)?;
    let power = match letter {
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    matches!(rest, "" | "b" | "ib").then(|| 1 << (10 * power))
}

fn whole_bytes(digits: &str, factor: u64) -> Option<u64> {
    let number = digits.bytes().try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(value(digit))
    })?;
    number.checked_mul(factor)
}

/// `0.digits * factor`, rounded down, exact for any number of digits: from the last digit to the
/// first, each step rounds down what is below one, and nested floors of whole numbers add up to the
/// floor of the sum.
fn fraction_bytes(digits: &str, factor: u64) -> u64 {
    digits
        .bytes()
        .rev()
        .fold(0, |rest, digit| (value(digit) * factor + rest) / 10)
}

fn value(digit: u8) -> u64 {
    u64::from(digit - b'0')
}
