//! The words that a configuration chooses from, each written one way in files, on the command
//! line and in JSON.

use lb_common::{abi, datapath::select};

/// An enum of words: its text, parsing with an error that lists the choices, serde, and the value
/// that the maps hold.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident($what:literal) -> $abi:ty {
        $($(#[$vmeta:meta])* $variant:ident = $text:literal => $value:expr,)+
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize,
            serde::Deserialize,
        )]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every choice.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// As it is written.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// As the maps hold it.
            pub const fn abi(self) -> $abi {
                match self { $(Self::$variant => $value),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|word| word.name() == text).ok_or_else(|| {
                    let choices: Vec<_> = Self::ALL.iter().map(|word| word.name()).collect();
                    format!("{:?} is no {}: choose {}", text, $what, choices.join(" or "))
                })
            }
        }
    };
}

words! {
    /// A transport protocol; the value is the IP protocol number.
    Protocol("protocol") -> u8 {
        /// TCP.
        Tcp = "tcp" => 6,
        /// UDP.
        Udp = "udp" => 17,
    }
}

words! {
    /// How a service's packets are forwarded.
    Mode("mode") -> abi::Mode {
        /// Destination rewritten to the backend, answers come back through the load balancer.
        Nat = "nat" => abi::Mode::NAT,
        /// MAC addresses rewritten, the backend owns the service address and answers directly.
        DsrL2 = "dsr-l2" => abi::Mode::DSR_L2,
        /// An outer IP header in front, the backend takes it off and answers directly.
        DsrIpip = "dsr-ipip" => abi::Mode::DSR_IPIP,
        /// Outer IP and UDP headers in front (GUE), the backend takes them off and answers directly.
        DsrGue = "dsr-gue" => abi::Mode::DSR_GUE,
    }
}

impl Mode {
    /// Whether packets get outer headers, whose family is the backend's.
    pub const fn is_tunnel(self) -> bool {
        match self {
            Self::Nat | Self::DsrL2 => false,
            Self::DsrIpip | Self::DsrGue => true,
        }
    }
}

words! {
    /// How a backend is chosen for a new flow.
    Algorithm("algorithm") -> abi::Algorithm {
        /// Maglev hashing over the client's address and port.
        Maglev = "maglev" => abi::Algorithm::MAGLEV,
        /// One after the other.
        RoundRobin = "round-robin" => abi::Algorithm::ROUND_ROBIN,
        /// Maglev hashing over the client's address alone.
        SourceHash = "source-hash" => abi::Algorithm::SOURCE_HASH,
    }
}

impl Algorithm {
    /// As lookup tables are built for it.
    pub const fn select(self) -> select::Algorithm {
        match self {
            Self::Maglev => select::Algorithm::Maglev,
            Self::RoundRobin => select::Algorithm::RoundRobin,
            Self::SourceHash => select::Algorithm::SourceHash,
        }
    }
}

words! {
    /// Whether a backend takes packets.
    State("state") -> abi::BackendState {
        /// Takes new flows.
        Enabled = "enabled" => abi::BackendState::ENABLED,
        /// Takes no new flow and keeps the ones it has.
        Draining = "draining" => abi::BackendState::DRAINING,
        /// Takes no new flow and keeps established TCP connections only.
        Disabled = "disabled" => abi::BackendState::DISABLED,
    }
}

words! {
    /// Where the XDP program is attached.
    XdpMode("XDP mode") -> &'static str {
        /// In the driver if it can, else generic.
        Auto = "auto" => "auto",
        /// In the driver, or not at all.
        Driver = "driver" => "driver",
        /// Generic (after the kernel has built a socket buffer): slow, works everywhere.
        Skb = "skb" => "skb",
    }
}
