//! Where the members of a run are: each in a network namespace of its own, on a bridge; or all on the loopback interface.
//!
//! The bridge and the namespaces are inside the namespaces of the run and go with it. Packets that cross the bridge pass
//! the rules of nftables, which is where links are cut and bits are flipped: the kernel changes the byte in the
//! packet and its checksum, so the connections are those that the members made, with nothing between them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::plan::{Channel, Member};
use crate::process::succeed;

/// `ip` and `tc` take milliseconds; this is for a machine with more to do.
const DEADLINE: Duration = Duration::from_secs(20);
/// One of so many packets is changed.
const CORRUPT_ONE_IN: u32 = 12;
/// Where in a packet after the TCP header's first byte, bits: past the longest header, within the first hundreds of bytes.
const CORRUPT_AT: u32 = 8 * 120;
/// Packets shorter than this are left alone, bytes: acknowledgements carry nothing that could be changed.
const CORRUPT_LONGER_THAN: u32 = 220;
/// Least, usual and most bytes of the kernel's send buffer of a TCP connection. Linux would let them grow to several MiB.
const SEND_BUFFERS: &str = "4096 131072 524288";
/// Queue of a slow link, as time: what is longer is dropped.
const QUEUE: &str = "300ms";
/// Both ends of the link between two parts of the network.
const SHARED_LINK: (&str, &str) = ("between0", "between1");

/// The network of a run.
#[derive(Debug)]
pub(crate) struct Network {
    /// False: loopback.
    namespaces: bool,
    /// Second byte of loopback addresses, so that runs beside each other do not meet.
    slot: u8,
    cut: BTreeSet<Member>,
    parted: BTreeSet<(Member, Member)>,
    corrupt: Vec<(Member, Member, Channel)>,
}

impl Network {
    /// Makes it. With namespaces, this process has to have mount and network namespaces of its own.
    pub(crate) fn make(namespaces: bool, slot: u8, members: &[Member]) -> Result<Self> {
        let network = Self { namespaces, slot, cut: BTreeSet::new(), parted: BTreeSet::new(), corrupt: Vec::new() };
        if !namespaces {
            return Ok(network);
        }
        fs::create_dir_all("/run/netns")?;
        succeed(Command::new("mount").args(["-t", "tmpfs", "chaos", "/run/netns"]), DEADLINE)?;
        let bridge = format!("{}/24", network.origin());
        ip(&["link", "set", "lo", "up"])?;
        ip(&["link", "add", "br0", "type", "bridge"])?;
        ip(&["addr", "add", &bridge, "dev", "br0"])?;
        ip(&["link", "set", "br0", "up"])?;
        for member in members {
            let (name, link) = (&member.to_string(), &link(*member));
            let address = format!("{}/24", network.address(*member));
            ip(&["netns", "add", name])?;
            ip(&["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name])?;
            ip(&["link", "set", link, "master", "br0", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
            ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
            network.small_send_buffers(*member)?;
        }
        Ok(network)
    }

    /// Bounds what the kernel holds of what the process has sent, so that the link shows what the process lets out, also after a cut.
    /// What it takes in is bounded by Eagle itself.
    fn small_send_buffers(&self, member: Member) -> Result<()> {
        let mut words = self.command(member).into_iter();
        let mut command = Command::new(words.next().context("no namespaces")?);
        let script = format!("echo '{SEND_BUFFERS}' > /proc/sys/net/ipv4/tcp_wmem");
        succeed(command.args(words).args(["sh", "-c", &script]), DEADLINE).map(|_| ())
    }

    pub(crate) fn has_namespaces(&self) -> bool {
        self.namespaces
    }

    /// The address of a member for all others.
    pub(crate) fn address(&self, member: Member) -> IpAddr {
        let tens = match member {
            Member::Tracker(_) => 10,
            Member::Seeder(_) => 20,
            Member::Proxy(_) => 30,
        };
        let last = u8::try_from(tens + member.number()).unwrap_or(u8::MAX);
        self.host(last)
    }

    /// The address of the origin.
    pub(crate) fn origin(&self) -> IpAddr {
        self.host(254)
    }

    fn host(&self, last: u8) -> IpAddr {
        IpAddr::V4(if self.namespaces {
            Ipv4Addr::new(10, 77, 0, last)
        } else {
            Ipv4Addr::new(127, 77, self.slot, last)
        })
    }

    /// Where a member listens for its own machine: its runtime, its administrator.
    pub(crate) fn local_address(&self, member: Member) -> IpAddr {
        if self.namespaces { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { self.address(member) }
    }

    /// What a command has to begin with to run on the machine of a member.
    pub(crate) fn command(&self, member: Member) -> Vec<String> {
        if self.namespaces {
            vec!["nsenter".into(), format!("--net=/run/netns/{member}"), "--".into()]
        } else {
            Vec::new()
        }
    }

    /// Moves this thread to the machine of a member, for good.
    pub(crate) fn enter(&self, member: Member) -> Result<()> {
        if self.namespaces {
            let path = format!("/run/netns/{member}");
            let namespace = File::open(&path).with_context(|| format!("no namespace {path}"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter {path}"))?;
        }
        Ok(())
    }

    /// Bytes that a member has sent and received on its link since the start; None on the loopback interface.
    pub(crate) fn counters(&self, member: Member) -> Option<(u64, u64)> {
        if !self.namespaces {
            return None;
        }
        // Received, by the bridge's end: what the member sent.
        counters(&link(member))
    }

    /// Cuts a member off, or connects it again.
    pub(crate) fn cut(&mut self, member: Member, cut: bool) -> Result<()> {
        if cut {
            self.cut.insert(member)
        } else {
            self.cut.remove(&member)
        };
        self.apply()
    }

    /// Cuts or heals what is between two members.
    pub(crate) fn part(&mut self, one: Member, other: Member, cut: bool) -> Result<()> {
        if cut {
            self.parted.insert((one, other))
        } else {
            self.parted.remove(&(one, other))
        };
        self.apply()
    }

    /// Begins or ends to change bits in what one member sends another.
    pub(crate) fn corrupt(&mut self, from: Member, to: Member, channel: Channel, on: bool) -> Result<()> {
        let entry = (from, to, channel);
        if on {
            self.corrupt.push(entry);
        } else if let Some(place) = self.corrupt.iter().position(|other| *other == entry) {
            self.corrupt.remove(place);
        }
        self.apply()
    }

    /// Limits the link of a member both ways, bytes per second; None: no limit.
    pub(crate) fn limit(&self, member: Member, rate: Option<u64>) -> Result<()> {
        let (name, link) = (member.to_string(), link(member));
        let ends: [(&[&str], &str); 2] = [(&[], &link), (&["-n", &name], "eth0")];
        for (namespace, device) in ends {
            let mut command = Command::new("tc");
            command.args(namespace);
            let rate = rate.map(|rate| format!("{}bit", rate * 8));
            match &rate {
                Some(rate) => command
                    .args(["qdisc", "replace", "dev", device, "root", "tbf", "rate", rate])
                    .args(["burst", "16kb", "latency", QUEUE]),
                None => command.args(["qdisc", "del", "dev", device, "root"]),
            };
            succeed(&mut command, DEADLINE)?;
        }
        Ok(())
    }

    /// Puts these members behind a link that all of them share for what they exchange with the others, bytes per second each way.
    /// Once for a network with namespaces.
    pub(crate) fn set_apart(&self, members: &[Member], rate: u64) -> Result<()> {
        ensure!(self.namespaces, "a shared link needs network namespaces");
        ip(&["link", "add", "br1", "type", "bridge"])?;
        ip(&["link", "set", "br1", "up"])?;
        ip(&["link", "add", SHARED_LINK.0, "type", "veth", "peer", "name", SHARED_LINK.1])?;
        let rate = format!("{}bit", rate * 8);
        for (link, bridge) in [(SHARED_LINK.0, "br0"), (SHARED_LINK.1, "br1")] {
            ip(&["link", "set", link, "master", bridge, "up"])?;
            let mut command = Command::new("tc");
            command.args(["qdisc", "add", "dev", link, "root", "tbf", "rate", &rate]);
            succeed(command.args(["burst", "64kb", "latency", QUEUE]), DEADLINE)?;
        }
        for member in members {
            ip(&["link", "set", &link(*member), "master", "br1"])?;
        }
        Ok(())
    }

    /// Bytes that have passed the link of [`Self::set_apart`], both ways.
    pub(crate) fn crossed(&self) -> Result<u64> {
        let (received, sent) = counters(SHARED_LINK.0).context("no link between the two parts")?;
        Ok(received + sent)
    }

    /// Replaces all rules at once.
    fn apply(&self) -> Result<()> {
        let mut rules = String::from("table bridge chaos\ndelete table bridge chaos\ntable bridge chaos {\n");
        for hook in ["forward", "input", "output"] {
            rules.push_str(&format!("chain {hook} {{\n type filter hook {hook} priority 0;\n"));
            for member in &self.cut {
                let link = link(*member);
                if hook != "output" {
                    rules.push_str(&format!(" iifname {link} drop\n"));
                }
                if hook != "input" {
                    rules.push_str(&format!(" oifname {link} drop\n"));
                }
            }
            if hook == "forward" {
                for (one, other) in &self.parted {
                    let (one, other) = (link(*one), link(*other));
                    rules.push_str(&format!(
                        " iifname {one} oifname {other} drop\n iifname {other} oifname {one} drop\n"
                    ));
                }
                for (from, to, channel) in &self.corrupt {
                    let ports = match channel {
                        Channel::Data => "{ 61017, 61018 }",
                        Channel::Control => "{ 61007, 61008 }",
                        Channel::Http => "{ 55008, 6969 }",
                    };
                    for side in ["sport", "dport"] {
                        rules.push_str(&format!(
                            " iifname {} oifname {} tcp {side} {ports} meta length > {CORRUPT_LONGER_THAN} \
                             numgen random mod {CORRUPT_ONE_IN} == 0 @th,{CORRUPT_AT},8 set 0x55\n",
                            link(*from),
                            link(*to)
                        ));
                    }
                }
            }
            rules.push_str("}\n");
        }
        rules.push_str("}\n");
        let mut nft =
            Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("cannot start nft")?;
        if let Some(mut stdin) = nft.stdin.take() {
            stdin.write_all(rules.as_bytes())?;
        }
        let status = nft.wait()?;
        ensure!(status.success(), "nft ended with {status} for\n{rules}");
        Ok(())
    }
}

/// Bytes that an interface of this thread's namespace, which is that of the bridge, has received and sent.
fn counters(interface: &str) -> Option<(u64, u64)> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    let name = format!("{interface}:");
    let counters = text.lines().find_map(|line| line.trim_start().strip_prefix(&name))?;
    let mut counters = counters.split_whitespace().map(|counter| counter.parse().ok());
    // What was sent is eight places on.
    Some((counters.next()??, counters.nth(7)??))
}

/// The bridge's end of a member's link.
fn link(member: Member) -> String {
    let letter = match member {
        Member::Tracker(_) => 't',
        Member::Seeder(_) => 's',
        Member::Proxy(_) => 'p',
    };
    format!("{letter}{}", member.number())
}

fn ip(arguments: &[&str]) -> Result<()> {
    succeed(Command::new("ip").args(arguments), DEADLINE).map(|_| ())
}
