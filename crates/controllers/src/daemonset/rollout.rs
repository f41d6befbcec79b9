//! One step of a rolling update of a daemon set. Without a surge, old pods are deleted as far as pods
//! may be missing, and [`super::plan::manage`] makes the new ones; with a surge, new pods come first.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::nodes::Fit;
use super::plan::{Actions, View};
use crate::amount;
use crate::pod::Pod;

/// The pods of one node that are not being deleted, at most one of each kind.
#[derive(Default)]
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

/// Nothing when there is more than one of a kind: then the excess is dealt with first.
fn pair<'a>(view: &View, pods: &'a [Arc<Pod>]) -> Option<Pair<'a>> {
    let mut pair = Pair::default();
    for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
        let side = if view.is_updated(pod) { &mut pair.new } else { &mut pair.old };
        if side.replace(pod).is_some() {
            return None;
        }
    }
    Some(pair)
}

/// The next step. Nothing for other strategies than a rolling update.
pub fn rolling(view: &View) -> Actions {
    let Some(settings) = view.rolling_update() else { return Actions::default() };
    let wanted = view.fits.values().filter(|f| **f == Fit::Runs).count() as i32;
    let surge = view.surge(wanted);
    let missing = settings.max_unavailable.unwrap_or(IntOrString::Int(1));
    let mut unavailable = amount::of(&missing, wanted, true);
    if wanted > 0 && unavailable == 0 && surge == 0 {
        unavailable = 1;
    }
    if surge == 0 { replace(view, unavailable) } else { surging(view, wanted, surge) }
}

/// Each node that has pods or is to have one, with its pods.
fn nodes<'a>(view: &'a View) -> impl Iterator<Item = (&'a String, &'a [Arc<Pod>])> {
    let bare = view.fits.iter().filter(|(node, fit)| **fit == Fit::Runs && !view.pods.contains_key(*node));
    view.pods.iter().map(|(node, pods)| (node, pods.as_slice())).chain(bare.map(|(node, _)| (node, [].as_slice())))
}

fn replace(view: &View, allowed: i32) -> Actions {
    let mut actions = Actions::default();
    let mut unavailable = 0;
    let mut candidates: Vec<Arc<Pod>> = Vec::new();
    for (_, pods) in nodes(view) {
        match pair(view, pods) {
            Some(Pair { new: Some(new), old: None }) => unavailable += i32::from(!view.is_available(new)),
            Some(Pair { new: None, old: Some(old) }) if view.is_available(old) => candidates.push(old.clone()),
            Some(Pair { new: None, old: Some(old) }) => {
                // It is missing anyway.
                actions.delete.push(old.clone());
                unavailable += 1;
            }
            _ => unavailable += 1,
        }
    }
    actions.delete.extend(candidates.into_iter().take((allowed - unavailable).max(0) as usize));
    actions
}

fn surging(view: &View, wanted: i32, surge: i32) -> Actions {
    let mut actions = Actions::default();
    let (mut under_way, mut available) = (0, 0);
    let (mut candidates, mut misplaced) = (Vec::new(), Vec::new());
    for (node, pods) in nodes(view) {
        let Some(pair) = pair(view, pods) else {
            under_way += 1;
            continue;
        };
        available += i32::from(pair.old.or(pair.new).is_some_and(|p| view.is_available(p)));
        let Some(old) = pair.old else { continue };
        if let Some(new) = pair.new {
            if view.is_available(new) { actions.delete.push(old.clone()) } else { under_way += 1 }
            continue;
        }
        let Some(fit) = view.fits.get(node) else { continue };
        match (view.is_available(old), fit) {
            (false, Fit::Runs) => actions.create.push(node.clone()),
            (false, _) => actions.delete.push(old.clone()),
            (true, Fit::Runs) => candidates.push(node.clone()),
            (true, _) => misplaced.push(old.clone()),
        }
    }
    // Where a pod should no longer be, it goes only when enough others are available.
    actions.delete.extend(misplaced.into_iter().take((available - wanted).max(0) as usize));
    actions.create.extend(candidates.into_iter().take((surge - under_way).max(0) as usize));
    actions
}
