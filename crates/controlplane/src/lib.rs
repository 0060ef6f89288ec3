//! The loops that feed the scheduler and the controllers and carry out what they decide.
