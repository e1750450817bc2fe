//! What the reports of several commands say alike.

/// What is not as good as it could be: what an image costs later, and what could not be promised here.
pub(crate) fn reservations(price: Option<&str>, missing: &[String]) -> Vec<String> {
    let price = price.iter().map(|price| format!("  costs: {price}"));
    price.chain(missing.iter().map(|missing| format!("  missing: {missing}"))).collect()
}
