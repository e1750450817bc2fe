//! What client and server agree on before the first request: fixed newstyle.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use rustls::ServerConfig;

use super::stream::Stream;
use super::wire::{self, Fields, flag, handshake, info, option, reply};
use crate::emulate::disk::Disk;
use crate::emulate::host::HostId;

/// The longest option that is listened to, in bytes: two strings and some numbers come to less.
const OPTION_MAX: usize = 16 << 10;

/// The longest option that is at least skipped, in bytes.
const SKIPPED_MAX: usize = 1 << 20;

/// How many options one client may send.
const OPTIONS_MAX: usize = 1000;

/// The longest request for data, in bytes: what the protocol lets every client count on.
pub(super) const PAYLOAD_MAX: u32 = 32 << 20;

/// The unit in which I/O is best done.
const PREFERRED: u32 = 4096;

/// What was agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Agreement {
    /// Who the client is.
    pub(super) host: HostId,
    /// Whether replies are structured.
    pub(super) structured: bool,
    /// Whether the client may ask which blocks are allocated.
    pub(super) allocation: bool,
}

/// Talks with a client until requests can come. Nothing where the client took its leave.
pub(super) fn negotiate(
    stream: &mut Stream,
    disk: &Disk,
    tls: Option<&Arc<ServerConfig>>,
    deadline: Instant,
) -> io::Result<Option<Agreement>> {
    let mut talk = Talk { stream, disk, tls, deadline, no_zeroes: false, structured: false, context: None };
    talk.greet()?;
    for _ in 0..OPTIONS_MAX {
        match talk.option()? {
            Next::Option => {}
            Next::Leave => return Ok(None),
            Next::Start(host) => {
                let allocation = talk.structured && talk.context == Some(host);
                return Ok(Some(Agreement { host, structured: talk.structured, allocation }));
            }
        }
    }
    Err(violation("it goes on and on"))
}

enum Next {
    Option,
    Leave,
    Start(HostId),
}

struct Talk<'a> {
    stream: &'a mut Stream,
    disk: &'a Disk,
    tls: Option<&'a Arc<ServerConfig>>,
    deadline: Instant,
    no_zeroes: bool,
    structured: bool,
    /// Of which export the client chose the context `base:allocation`.
    context: Option<HostId>,
}

impl Talk<'_> {
    fn greet(&mut self) -> io::Result<()> {
        let mut hello = Vec::with_capacity(18);
        hello.extend(wire::MAGIC.to_be_bytes());
        hello.extend(wire::OPTION_MAGIC.to_be_bytes());
        hello.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
        self.stream.write_all(&hello, self.deadline)?;
        let mut flags = [0; 4];
        self.stream.read_exact(&mut flags, self.deadline)?;
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES) != 0 {
            return Err(violation("it sets flags that nobody offered"));
        }
        self.no_zeroes = flags & u32::from(handshake::NO_ZEROES) != 0;
        Ok(())
    }

    fn option(&mut self) -> io::Result<Next> {
        let mut header = [0; wire::OPTION_LEN];
        self.stream.read_exact(&mut header, self.deadline)?;
        let mut fields = Fields(&header);
        let (Some(wire::OPTION_MAGIC), Some(code), Some(len)) = (fields.u64(), fields.u32(), fields.u32()) else {
            return Err(violation("its option has the wrong magic number"));
        };
        let len = len as usize;
        if len > OPTION_MAX {
            self.skip(len)?;
            if code == option::EXPORT_NAME {
                return Err(violation("the name of its export is too long"));
            }
            self.reply(code, reply::ERR_TOO_BIG, b"")?;
            return Ok(Next::Option);
        }
        let mut data = vec![0; len];
        self.stream.read_exact(&mut data, self.deadline)?;
        let locked = self.tls.is_some() && !self.stream.is_encrypted();
        match code {
            option::ABORT => {
                // It may well be gone already.
                let _ = self.reply(code, reply::ACK, b"");
                return Ok(Next::Leave);
            }
            option::STARTTLS => self.start_tls(&data)?,
            option::EXPORT_NAME if locked => return Err(violation("it speaks no TLS")),
            _ if locked => self.reply(code, reply::ERR_TLS_REQD, b"the exports are for who speaks TLS")?,
            option::EXPORT_NAME => return self.export(&data),
            option::LIST => self.list(&data)?,
            option::INFO | option::GO => return self.info(code, &data),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(code, reply::ACK, b"")?;
            }
            option::STRUCTURED_REPLY => self.reply(code, reply::ERR_INVALID, b"it takes no data")?,
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(code, &data)?,
            _ => self.reply(code, reply::ERR_UNSUP, b"")?,
        }
        Ok(Next::Option)
    }

    fn skip(&mut self, len: usize) -> io::Result<()> {
        if len > SKIPPED_MAX {
            return Err(violation("its option is far too long"));
        }
        self.stream.read_exact(&mut vec![0; len], self.deadline)
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(20 + data.len());
        bytes.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        // What we say is short.
        bytes.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes, self.deadline)
    }

    fn start_tls(&mut self, data: &[u8]) -> io::Result<()> {
        match self.tls {
            _ if !data.is_empty() => self.reply(option::STARTTLS, reply::ERR_INVALID, b"it takes no data"),
            _ if self.stream.is_encrypted() => self.reply(option::STARTTLS, reply::ERR_INVALID, b"this is TLS already"),
            None => self.reply(option::STARTTLS, reply::ERR_UNSUP, b"the server was given no certificate"),
            Some(config) => {
                self.reply(option::STARTTLS, reply::ACK, b"")?;
                // What was agreed on in the open does not count.
                (self.structured, self.context) = (false, None);
                self.stream.start_tls(Arc::clone(config), self.deadline)
            }
        }
    }

    /// The host that an export's name means. The empty name is the default export: the host, if there is one only.
    fn host(&self, name: &[u8]) -> Option<HostId> {
        match (name, self.disk.hosts()) {
            (b"", [only]) => self.disk.host(only.as_str()),
            _ => self.disk.host(std::str::from_utf8(name).ok()?),
        }
    }

    fn list(&mut self, data: &[u8]) -> io::Result<()> {
        if !data.is_empty() {
            return self.reply(option::LIST, reply::ERR_INVALID, b"it takes no data");
        }
        for host in self.disk.hosts() {
            let name = host.as_str().as_bytes();
            let mut entry = u32::try_from(name.len()).unwrap_or(0).to_be_bytes().to_vec();
            entry.extend(name);
            self.reply(option::LIST, reply::SERVER, &entry)?;
        }
        self.reply(option::LIST, reply::ACK, b"")
    }

    /// What the disk can do, before and after structured replies were agreed on.
    fn flags(&self) -> u16 {
        let always = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            // All exports are one disk: what one connection flushes is durable for all.
            | flag::CAN_MULTI_CONN;
        let access =
            if self.disk.options().read_only { flag::READ_ONLY } else { flag::SEND_TRIM | flag::SEND_WRITE_ZEROES };
        always | access | if self.structured { flag::SEND_DF } else { 0 }
    }

    fn export(&mut self, name: &[u8]) -> io::Result<Next> {
        let Some(host) = self.host(name) else { return Err(violation("it asks for an export that is not there")) };
        let mut bytes = self.disk.size().bytes().to_be_bytes().to_vec();
        bytes.extend(self.flags().to_be_bytes());
        if !self.no_zeroes {
            bytes.extend([0; 124]);
        }
        self.stream.write_all(&bytes, self.deadline)?;
        Ok(Next::Start(host))
    }

    fn info(&mut self, code: u32, data: &[u8]) -> io::Result<Next> {
        let mut fields = Fields(data);
        let parsed = fields.string().zip(fields.u16()).filter(|(_, count)| usize::from(*count) * 2 == fields.0.len());
        let Some((name, count)) = parsed else {
            self.reply(code, reply::ERR_INVALID, b"it is malformed")?;
            return Ok(Next::Option);
        };
        let Some(host) = self.host(name) else {
            self.reply(code, reply::ERR_UNKNOWN, b"there is no such export")?;
            return Ok(Next::Option);
        };
        let asked: Vec<u16> = (0..count).filter_map(|_| fields.u16()).collect();
        let mut item =
            |kind: u16, content: &[u8]| self.reply(code, reply::INFO, &[&kind.to_be_bytes(), content].concat());
        if asked.contains(&info::NAME) {
            item(info::NAME, name)?;
        }
        if asked.contains(&info::DESCRIPTION) {
            item(info::DESCRIPTION, b"a shared disk, as this host sees it")?;
        }
        // The sector size is 512 or 4096.
        let minimum = u32::try_from(self.disk.options().sector_size.bytes()).unwrap_or(PREFERRED);
        let sizes = [minimum, PREFERRED, PAYLOAD_MAX].map(u32::to_be_bytes).concat();
        self.reply(code, reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())?;
        let export = [&self.disk.size().bytes().to_be_bytes()[..], &self.flags().to_be_bytes()].concat();
        self.reply(code, reply::INFO, &[&info::EXPORT.to_be_bytes()[..], &export].concat())?;
        self.reply(code, reply::ACK, b"")?;
        Ok(if code == option::GO { Next::Start(host) } else { Next::Option })
    }

    fn contexts(&mut self, code: u32, data: &[u8]) -> io::Result<()> {
        let setting = code == option::SET_META_CONTEXT;
        if setting {
            // Also a request that fails takes back what was agreed on before.
            self.context = None;
        }
        if !self.structured {
            return self.reply(code, reply::ERR_INVALID, b"first: structured replies");
        }
        let mut fields = Fields(data);
        let parsed = fields.string().zip(fields.u32());
        let queries = parsed.and_then(|(_, count)| {
            let count = usize::try_from(count).ok().filter(|count| *count <= OPTION_MAX)?;
            let queries: Option<Vec<&[u8]>> = (0..count).map(|_| fields.string()).collect();
            queries.filter(|_| fields.0.is_empty())
        });
        let (Some((name, _)), Some(queries)) = (parsed, queries) else {
            return self.reply(code, reply::ERR_INVALID, b"it is malformed");
        };
        let Some(host) = self.host(name) else {
            return self.reply(code, reply::ERR_UNKNOWN, b"there is no such export");
        };
        let wanted = queries.contains(&wire::BASE_ALLOCATION)
            || (!setting && (queries.is_empty() || queries.contains(&b"base:".as_slice())));
        if wanted {
            // In a list the number has no meaning and is 0.
            let id = if setting { wire::BASE_ALLOCATION_ID } else { 0 };
            let entry = [&id.to_be_bytes()[..], wire::BASE_ALLOCATION].concat();
            self.reply(code, reply::META_CONTEXT, &entry)?;
        }
        if setting && wanted {
            self.context = Some(host);
        }
        self.reply(code, reply::ACK, b"")
    }
}

fn violation(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client breaks the protocol: {what}"))
}
