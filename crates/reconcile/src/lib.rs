//! What all controllers share: one informer a kind a process, keyed queues with back-off, events, supervised tasks.
#![forbid(unsafe_code)]
