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

                let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
                if wide && is_x86_feature_detected!("avx512dq") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: the features were just detected.
                    return unsafe { avx512 $(::<$generic>)? ($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was just detected.
                    return unsafe { avx2 $(::<$generic>)? ($($argument),*) };
                }
            }
            $body $(::<$generic>)? ($($argument),*)
        }
    };
}

pub(crate) use vectorised;
