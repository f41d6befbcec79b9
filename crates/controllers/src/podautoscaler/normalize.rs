//! What becomes of a wanted number of replicas: recent recommendations hold it back, and it changes no
//! faster than the rules allow. Pure; the recent past is a [`Memory`].

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// What is remembered of an autoscaler between two passes; lost with the process, as upstream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    recommendations: Vec<(i32, Timestamp)>,
    ups: Vec<(i32, Timestamp)>,
    downs: Vec<(i32, Timestamp)>,
}

/// A reason and a message for a condition.
pub type Why = (&'static str, &'static str);

/// A number of replicas with what is said of how it came about.
#[derive(Debug, PartialEq)]
pub struct Normalized {
    pub replicas: i32,
    /// Of AbleToScale, which is true.
    pub able: Why,
    /// Of ScalingLimited, and whether that is true.
    pub limited: (bool, Why),
}

/// The bounds of a pass.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub current: i32,
    pub wanted: i32,
    pub min: i32,
    pub max: i32,
}

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: Why = ("ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation");
const UP_STABILIZED: Why = ("ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation");
const UP_LIMIT: Why = ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Why = ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Why = ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Why = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const IN_RANGE: Why = ("DesiredWithinRange", "the desired count is within the acceptable range");

impl Memory {
    /// The first pass begins with what is.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((current, now));
        }
    }

    /// Remembers a change that was made.
    pub fn scaled(&mut self, behavior: Option<&HorizontalPodAutoscalerBehavior>, from: i32, to: i32, now: Timestamp) {
        let Some(behavior) = behavior else { return };
        let (events, rules) = if to > from { (&mut self.ups, Rules::up(behavior)) } else { (&mut self.downs, Rules::down(behavior, SignedDuration::ZERO)) };
        let longest = rules.policies.iter().map(|p| p.period_seconds).max().unwrap_or(0);
        events.retain(|(_, at)| *at >= now - SignedDuration::from_secs(longest.into()));
        events.push(((to - from).abs(), now));
    }

    fn recommend(&mut self, wanted: i32, oldest: Timestamp, now: Timestamp) {
        self.recommendations.retain(|(_, at)| *at >= oldest);
        self.recommendations.push((wanted, now));
    }

    /// Without a behavior: down after a time of lower recommendations, up to twice as many, or four.
    pub fn normalize(&mut self, b: Bounds, window: SignedDuration, now: Timestamp) -> Normalized {
        let cutoff = now - window;
        let recent = self.recommendations.iter().filter(|(_, at)| *at >= cutoff).map(|(n, _)| *n);
        let stabilized = recent.chain([b.wanted]).max().unwrap_or(b.wanted);
        self.recommend(b.wanted, cutoff, now);
        let able = if stabilized == b.wanted { READY } else { DOWN_STABILIZED };
        let fastest = b.current.saturating_mul(2).max(4);
        let (most, why) = if b.max > fastest { (fastest, UP_LIMIT) } else { (b.max, TOO_MANY) };
        let (replicas, why) = match stabilized {
            n if n < b.min => (b.min, TOO_FEW),
            n if n > most => (most, why),
            n => (n, IN_RANGE),
        };
        Normalized { replicas, able, limited: (replicas != stabilized, why) }
    }

    /// With a behavior: by its windows and policies.
    pub fn normalize_with(&mut self, behavior: &HorizontalPodAutoscalerBehavior, b: Bounds, window: SignedDuration, now: Timestamp) -> Normalized {
        let (up, down) = (Rules::up(behavior), Rules::down(behavior, window));
        let (up_cutoff, down_cutoff) = (now - up.window, now - down.window);
        let since = |cutoff: Timestamp| self.recommendations.iter().filter(move |(_, at)| *at > cutoff).map(|(n, _)| *n).chain([b.wanted]);
        let least = since(up_cutoff).min().unwrap_or(b.wanted);
        let most = since(down_cutoff).max().unwrap_or(b.wanted);
        let stabilized = b.current.max(least).min(most);
        self.recommend(b.wanted, up_cutoff.min(down_cutoff), now);
        let able = match stabilized {
            n if n == b.wanted => READY,
            _ if b.wanted >= b.current => UP_STABILIZED,
            _ => DOWN_STABILIZED,
        };
        let (replicas, why) = self.limit(&up, &down, Bounds { wanted: stabilized, ..b }, now);
        Normalized { replicas, able, limited: (replicas != stabilized, why) }
    }

    fn limit(&self, up: &Rules<'_>, down: &Rules<'_>, b: Bounds, now: Timestamp) -> (i32, Why) {
        if b.wanted > b.current {
            let fastest = up.up_limit(b.current, self, now).max(b.current);
            let (most, why) = if b.max > fastest { (fastest, UP_LIMIT) } else { (b.max, TOO_MANY) };
            if b.wanted > most {
                return (most, why);
            }
        } else if b.wanted < b.current {
            let fastest = down.down_limit(b.current, self, now).min(b.current);
            let (least, why) = if b.min < fastest { (fastest, DOWN_LIMIT) } else { (b.min, TOO_FEW) };
            if b.wanted < least {
                return (least, why);
            }
        }
        (b.wanted, IN_RANGE)
    }
}

/// The rules of one direction, with their defaults filled in.
struct Rules<'a> {
    window: SignedDuration,
    select: &'a str,
    policies: Vec<HPAScalingPolicy>,
}

fn policy(type_: &str, value: i32) -> HPAScalingPolicy {
    HPAScalingPolicy { type_: type_.into(), value, period_seconds: 15 }
}

impl Rules<'_> {
    fn up(behavior: &HorizontalPodAutoscalerBehavior) -> Rules<'_> {
        Rules::of(behavior.scale_up.as_ref(), SignedDuration::ZERO, || vec![policy("Pods", 4), policy("Percent", 100)])
    }

    fn down(behavior: &HorizontalPodAutoscalerBehavior, window: SignedDuration) -> Rules<'_> {
        Rules::of(behavior.scale_down.as_ref(), window, || vec![policy("Percent", 100)])
    }

    fn of(rules: Option<&HPAScalingRules>, window: SignedDuration, policies: impl FnOnce() -> Vec<HPAScalingPolicy>) -> Rules<'_> {
        let given = rules.and_then(|r| r.policies.clone()).filter(|p| !p.is_empty());
        Rules {
            window: rules.and_then(|r| r.stabilization_window_seconds).map_or(window, |s| SignedDuration::from_secs(s.into())),
            select: rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max"),
            policies: given.unwrap_or_else(policies),
        }
    }

    /// The number of replicas at the beginning of a policy's period.
    fn before(policy: &HPAScalingPolicy, current: i32, memory: &Memory, now: Timestamp) -> i32 {
        let cutoff = now - SignedDuration::from_secs(policy.period_seconds.into());
        let changed = |events: &[(i32, Timestamp)]| events.iter().filter(|(_, at)| *at > cutoff).map(|(n, _)| n).sum::<i32>();
        current - changed(&memory.ups) + changed(&memory.downs)
    }

    fn up_limit(&self, current: i32, memory: &Memory, now: Timestamp) -> i32 {
        let proposals = self.policies.iter().map(|p| {
            let before = Self::before(p, current, memory, now);
            match p.type_.as_str() {
                "Pods" => before.saturating_add(p.value),
                // Rounded up, or a small number would never grow.
                _ => (f64::from(before) * (1.0 + f64::from(p.value) / 100.0)).ceil() as i32,
            }
        });
        match self.select {
            "Disabled" => current,
            "Min" => proposals.min().unwrap_or(current),
            _ => proposals.max().unwrap_or(current),
        }
    }

    fn down_limit(&self, current: i32, memory: &Memory, now: Timestamp) -> i32 {
        let proposals = self.policies.iter().map(|p| {
            let before = Self::before(p, current, memory, now);
            match p.type_.as_str() {
                "Pods" => before.saturating_sub(p.value),
                _ => (f64::from(before) * (1.0 - f64::from(p.value) / 100.0)) as i32,
            }
        });
        match self.select {
            "Disabled" => current,
            // The smallest change leaves the most.
            "Min" => proposals.max().unwrap_or(current),
            _ => proposals.min().unwrap_or(current),
        }
    }
}
