//! A client that says exactly what it is told to, right or wrong.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;

pub struct Client {
    pub stream: UnixStream,
    cookie: u64,
}

/// A reply to an option: its kind, and its data.
pub type OptionReply = (u32, Vec<u8>);

impl Client {
    /// Connected, with the flags exchanged.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut client = Self { stream, cookie: 0 };
        let mut hello = [0; 18];
        client.stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(hello[16..], [0, 3]);
        client.stream.write_all(&3u32.to_be_bytes()).unwrap();
        client
    }

    /// At the export `name`, without structured replies.
    pub fn at(socket: &Path, name: &str) -> Self {
        let mut client = Self::connect(socket);
        client.go(name);
        client
    }

    pub fn go(&mut self, name: &str) {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        data.extend(0u16.to_be_bytes());
        let replies = self.option(7, &data);
        assert_eq!(replies.last().unwrap().0, 1, "{replies:?}");
    }

    pub fn send_option(&mut self, option: u32, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        let head = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes()].concat();
        self.stream.write_all(&[&head[..], data].concat()).unwrap();
    }

    /// All replies to an option.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, data);
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            assert_eq!(u64::from_be_bytes(head[..8].try_into().unwrap()), 0x3_e889_0455_65a9);
            assert_eq!(u32::from_be_bytes(head[8..12].try_into().unwrap()), option);
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind == 1 || kind & 1 << 31 != 0 {
                return replies;
            }
        }
    }

    /// Sends a request; returns its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u64 {
        self.cookie += 1;
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend(data);
        self.stream.write_all(&bytes).unwrap();
        self.cookie
    }

    /// The next simple reply, without its data: cookie and error.
    pub fn reply(&mut self) -> (u64, u32) {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x6744_6698u32.to_be_bytes());
        (u64::from_be_bytes(head[8..].try_into().unwrap()), u32::from_be_bytes(head[4..8].try_into().unwrap()))
    }

    /// Sends a request and awaits its error.
    pub fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let cookie = self.send(command, flags, offset, len, data);
        let (answered, error) = self.reply();
        assert_eq!(answered, cookie);
        error
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(WRITE, 0, offset, u32::try_from(data.len()).unwrap(), data)
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        match self.ask(READ, 0, offset, len, &[]) {
            0 => {
                let mut data = vec![0; len as usize];
                self.stream.read_exact(&mut data).unwrap();
                Ok(data)
            }
            error => Err(error),
        }
    }

    /// The next chunk of a structured reply: flags, kind, cookie, payload.
    pub fn chunk(&mut self) -> (u16, u16, u64, Vec<u8>) {
        let mut head = [0; 20];
        self.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[..4], 0x668e_33efu32.to_be_bytes());
        let mut payload = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        let flags = u16::from_be_bytes(head[4..6].try_into().unwrap());
        let kind = u16::from_be_bytes(head[6..8].try_into().unwrap());
        (flags, kind, u64::from_be_bytes(head[8..16].try_into().unwrap()), payload)
    }

    /// Whether the server has ended the connection, and nothing more comes.
    pub fn is_cut_off(&mut self) -> bool {
        match self.stream.read(&mut [0; 64]) {
            Ok(count) => count == 0,
            // What it had not read yet when it closed the connection.
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
