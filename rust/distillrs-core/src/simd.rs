//! Loops compiled once for each vector instruction set and chosen at run time.
//!
//! The body is ordinary Rust, compiled again under `#[target_feature]`: the compiler turns it into wider vectors and
//! nothing else. Rust never contracts a product and a sum into one rounding, so all variants give the same bits.

/// Defines a function that runs `$body`, an `#[inline(always)]` function, compiled for the machine at hand.
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$generic:ident: $bound:path>)? ($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? = $body:ident;
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
                    $body $(::<$generic>)? ($($argument),*)
                }

                #[target_feature(enable = "avx2")]
                fn avx2 $(<$generic: $bound>)? ($($argument: $type),*) $(-> $result)? {
                    $body $(::<$generic>)? ($($argument),*)
                }

                match $crate::host::Level::here() {
                    // SAFETY: the level says that the processor has the instructions.
                    $crate::host::Level::Avx512 => return unsafe { avx512 $(::<$generic>)? ($($argument),*) },
                    // SAFETY: the level says that the processor has the instructions.
                    $crate::host::Level::Avx2 => return unsafe { avx2 $(::<$generic>)? ($($argument),*) },
                    $crate::host::Level::Portable => {}
                }
            }
            $body $(::<$generic>)? ($($argument),*)
        }
    };
}

pub(crate) use vectorised;
