//! What is expected of one flow, and which source says so.
