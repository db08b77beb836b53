//! libtcpr.
