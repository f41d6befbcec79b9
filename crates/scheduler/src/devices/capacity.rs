//! Capacity of devices that are had by several claims at once: what a request takes of it, and whether
//! that much is left.

use std::collections::BTreeMap;

use api::quantity::{Format, Quantity};

use super::slice::{Capacity, Device, Policy};

/// Amounts by the capacity's name.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a request takes of one capacity: what is asked for, rounded up to what the device gives out;
/// without a wish the default, or all.
fn taken(wish: Option<&Quantity>, capacity: &Capacity) -> Quantity {
    let policy = capacity.policy.as_ref();
    let Some(wish) = wish else { return policy.and_then(|p| p.default.clone()).unwrap_or_else(|| capacity.value.clone()) };
    match policy {
        Some(Policy { range: Some((least, _, _)), .. }) if wish < least => least.clone(),
        Some(Policy { range: Some((least, _, Some(step))), .. }) if step.value() > 0 => {
            let (above, step) = (wish.value() - least.value(), step.value());
            let steps = above / step + i64::from(above % step != 0);
            Quantity::new(least.value() + steps * step, Format::BinarySI)
        }
        Some(Policy { range: None, values, .. }) => values.iter().find(|v| wish <= v).unwrap_or(wish).clone(),
        _ => wish.clone(),
    }
}

/// Whether a device gives out such an amount.
fn is_given(amount: &Quantity, policy: Option<&Policy>) -> bool {
    match policy {
        None => true,
        Some(Policy { default: Some(default), .. }) if amount == default => true,
        Some(Policy { range: Some((least, most, step)), .. }) => {
            let in_steps = |step: &Quantity| step.value() <= 0 || (amount.value() - least.value()) % step.value() == 0;
            most.as_ref().is_none_or(|most| amount <= most) && step.as_ref().is_none_or(in_steps)
        }
        Some(Policy { values, .. }) => values.is_empty() || values.contains(amount),
    }
}

/// What a request takes of each of a device's capacities.
pub fn consumed(wishes: &Amounts, device: &Device) -> Amounts {
    device.capacity.iter().map(|(name, capacity)| (name.clone(), taken(wishes.get(name), capacity))).collect()
}

/// Whether a device has what a request asks for, besides what others have `taken` of it.
pub fn has_room(wishes: &Amounts, device: &Device, others: &[Option<&Amounts>]) -> bool {
    if wishes.keys().any(|name| !device.capacity.contains_key(name)) {
        return false;
    }
    device.capacity.iter().all(|(name, capacity)| {
        let mut sum = taken(wishes.get(name), capacity);
        if !is_given(&sum, capacity.policy.as_ref()) {
            return false;
        }
        others.iter().flatten().filter_map(|other| other.get(name)).for_each(|other| sum.add(other));
        sum <= capacity.value
    })
}

/// Adds amounts to others.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        to.entry(name.clone()).or_insert_with(Quantity::zero).add(amount);
    }
}

/// Takes amounts away from others.
pub fn subtract(from: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        if let Some(left) = from.get_mut(name) {
            left.sub(amount);
        }
    }
}
