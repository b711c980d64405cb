//! Against a master played over plain TCP.
