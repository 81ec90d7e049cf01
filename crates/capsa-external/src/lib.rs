//! Other people's monitors, driven as child processes.
