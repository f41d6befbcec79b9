//! Exec, attach and port-forward streams: SPDY/3.1 and WebSocket v4 and v5. Does not know what is streamed.
#![forbid(unsafe_code)]
