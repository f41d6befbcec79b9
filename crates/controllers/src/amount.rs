//! Numbers that may be given as a percentage of something.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What a number or percentage means of `total`, a fraction rounded up or down. What is neither
/// counts as 0.
pub fn of(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            let product = percent.saturating_mul(i64::from(total));
            let part = if round_up { product.saturating_add(99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(part).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_told() {
        let percent = |p: &str| IntOrString::String(p.into());
        assert_eq!(of(&IntOrString::Int(3), 10, true), 3);
        assert_eq!((of(&percent("25%"), 10, true), of(&percent("25%"), 10, false)), (3, 2));
        assert_eq!((of(&percent("100%"), 7, true), of(&percent("0%"), 7, true)), (7, 0));
        assert_eq!(of(&percent("nonsense"), 7, true), 0);
    }
}
