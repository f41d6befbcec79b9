//! Images: pull, content store, unpack, overlay snapshots. Knows no containers.
