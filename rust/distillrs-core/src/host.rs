//! What this machine offers at run time, and how much of it is used.

use std::sync::LazyLock;

use crate::{Error, Result};

/// The environment variable that bounds [`Level::here`]: for tests and benchmarks of the narrower loops.
pub const LEVEL_VARIABLE: &str = "DISTILLRS_SIMD";

/// Which instructions a loop is compiled for; the later one is the wider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Those that every processor of this architecture has.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, DQ and VL beside these.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// The widest one of this machine, or the bound that [`LEVEL_VARIABLE`] had at the first call if that is narrower.
    pub fn here() -> Self {
        static HERE: LazyLock<Level> = LazyLock::new(|| {
            let machine = Level::of_machine();
            // A name that is none was refused when the library was loaded.
            Level::bound().ok().flatten().map_or(machine, |bound| machine.min(bound))
        });
        *HERE
    }

    /// What [`LEVEL_VARIABLE`] says; `None` where it is not set.
    ///
    /// # Errors
    /// [`Error::Argument`] if it names no level.
    pub fn bound() -> Result<Option<Self>> {
        std::env::var_os(LEVEL_VARIABLE).map(|name| Self::named(&name.to_string_lossy())).transpose()
    }

    fn named(name: &str) -> Result<Self> {
        match name {
            "portable" => Ok(Self::Portable),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Ok(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Ok(Self::Avx512),
            // No bound where there is nothing as wide.
            #[cfg(not(target_arch = "x86_64"))]
            "avx2" | "avx512" => Ok(Self::Portable),
            _ => Err(Error::argument(LEVEL_VARIABLE, format_args!("{name:?}"), "avx512, avx2 or portable")),
        }
    }

    fn of_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let narrow = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if narrow && is_x86_feature_detected!("f16c") {
                let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
                if wide && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                    return Self::Avx512;
                }
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Every level that this machine has, for tests.
    #[cfg(test)]
    pub(crate) fn all() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        levels.extend([Self::Avx2, Self::Avx512]);
        levels.retain(|&level| level <= Self::of_machine());
        levels
    }
}

/// Whether this machine's AVX-512 has the instructions that round to bfloat16.
pub(crate) fn rounds_to_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The name of [`Level::here`].
pub fn simd_level() -> &'static str {
    match Level::here() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => "avx512",
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => "avx2",
        Level::Portable => {
            if cfg!(target_arch = "x86_64") {
                "sse2"
            } else if cfg!(target_arch = "aarch64") {
                "neon"
            } else {
                "portable"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_has_a_name() {
        assert!(["avx512", "avx2", "sse2", "neon", "portable"].contains(&simd_level()));
    }

    #[test]
    fn levels_have_an_order_and_other_names_are_refused() {
        assert_eq!(Level::named("portable").unwrap(), Level::Portable);
        let named = ["portable", "avx2", "avx512"].map(|name| Level::named(name).unwrap());
        assert!(named.is_sorted());
        let message = Level::named("avx3").unwrap_err().to_string();
        assert_eq!(message, "DISTILLRS_SIMD: got \"avx3\", allowed is avx512, avx2 or portable");
    }
}
