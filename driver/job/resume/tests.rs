//! Records that are torn, damaged, in use.

use super::*;
