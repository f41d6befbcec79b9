//! Constraints between the devices of a claim: all have the same value of an attribute, or no two have.

use k8s_openapi::api::resource::v1::DeviceConstraint;

use super::slice::{Attribute, Device};

/// A constraint, with the values of the devices that were chosen so far.
#[derive(Debug)]
pub struct Constraint {
    /// Requests that it is about, `REQUEST` or `REQUEST/SUBREQUEST`; none means all.
    requests: Vec<String>,
    attribute: String,
    distinct: bool,
    chosen: Vec<Attribute>,
}

impl Constraint {
    /// Reads one; nothing when it is of a kind that is not known.
    pub fn of(raw: &DeviceConstraint) -> Option<Constraint> {
        let (attribute, distinct) = match (&raw.match_attribute, &raw.distinct_attribute) {
            (Some(attribute), _) => (attribute, false),
            (None, Some(attribute)) => (attribute, true),
            (None, None) => return None,
        };
        Some(Constraint { requests: raw.requests.clone().unwrap_or_default(), attribute: attribute.clone(), distinct, chosen: Vec::new() })
    }

    fn concerns(&self, request: &str, full: &str) -> bool {
        self.requests.is_empty() || self.requests.iter().any(|r| r == request || r == full)
    }

    /// Takes a device in for a request, unless it does not go with those that were.
    pub fn add(&mut self, request: &str, full: &str, driver: &str, device: &Device) -> bool {
        if !self.concerns(request, full) {
            return true;
        }
        let Some(value) = device.attribute(driver, &self.attribute) else { return false };
        // The first goes with all, even when its type is not known.
        let fits = match self.chosen.first() {
            None => true,
            Some(_) if *value == Attribute::Unknown => false,
            Some(first) if !self.distinct => first == value,
            Some(_) => !self.chosen.contains(value),
        };
        if fits {
            self.chosen.push(value.clone());
        }
        fits
    }

    /// Takes the device that came last for a request out again.
    pub fn remove(&mut self, request: &str, full: &str) {
        if self.concerns(request, full) {
            self.chosen.pop();
        }
    }
}
