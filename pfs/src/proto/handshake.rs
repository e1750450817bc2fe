//! How a client is let in: by a file `<pid>.pid`, which it keeps locked for as long as it is there.
//!
//! The client writes the first page, a [`MountRequest`], and sets the file's mode to [`ASK`]; the daemon, which watches the
//! directory, appends the second, an [`Ack`]. The file's length says how far they are: less than [`SYNC_SIZE`], the client is
//! still writing; [`FILE_SIZE`], it is answered. To be promoted, a client writes its page again with the next epoch. A client
//! whose file is no longer locked is gone; one that set the mode to [`LEAVE`] wants to be.

use super::geometry::REGIONS;
use super::record::{Record, RecordMut};
use super::{ConnectionId, DISK_NAME_MAX, MountEpoch, MountFlags, MountId, VERSION};

/// Bytes that the client writes, from the start of the file.
pub const SYNC_SIZE: usize = 4096;

/// Bytes in the whole file: what the daemon writes is as much again.
pub const FILE_SIZE: usize = 2 * SYNC_SIZE;

/// The file's mode when its client wants to mount, or to mount otherwise.
pub const ASK: u32 = 0o666;

/// The file's mode when its client wants to be forgotten, whoever may still have the file open.
pub const LEAVE: u32 = 0o777;

/// Bytes of a name.
const NAME: usize = DISK_NAME_MAX + 1;

/// Bytes of a path to a region.
const PATH: usize = 512;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Of the protocol.
    pub version: u32,
    /// What kind of storage.
    pub cluster: String,
    /// Which disk.
    pub disk: String,
    /// Which host it is for the volume; 0 for the last.
    pub host: i32,
    /// How.
    pub flags: MountFlags,
    /// The one after that of the answer before, if there was any.
    pub epoch: MountEpoch,
}

impl MountRequest {
    /// What a page says, whatever that is.
    #[must_use]
    pub fn parse(page: &[u8; SYNC_SIZE]) -> Self {
        let page = Record::new(page, 0);
        Self {
            version: page.u32(0),
            cluster: page.text(4, NAME),
            disk: page.text(4 + NAME, NAME),
            host: page.i32(132),
            flags: MountFlags::from_bits(page.u32(136)),
            epoch: MountEpoch(page.u32(140)),
        }
    }

    /// The page that says this. What is too long of a name is cut off.
    #[must_use]
    pub fn write(&self) -> [u8; SYNC_SIZE] {
        let mut bytes = [0; SYNC_SIZE];
        let mut page = RecordMut::new(&mut bytes, 0);
        page.put_u32(0, self.version);
        page.put_text(4, NAME, &self.cluster);
        page.put_text(4 + NAME, NAME, &self.disk);
        page.put_i32(132, self.host);
        page.put_u32(136, self.flags.bits());
        page.put_u32(140, self.epoch.0);
        bytes
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// 0, or minus the errno that says why not.
    pub error: i32,
    /// Why not, for people.
    pub text: String,
    /// Which connection it is from now on.
    pub connection: Option<ConnectionId>,
    /// Where the regions are.
    pub regions: [String; REGIONS],
    /// What requests are to be sent to.
    pub mount: MountId,
    /// Of the request that this answers.
    pub epoch: MountEpoch,
    /// How it is mounted now.
    pub flags: MountFlags,
    /// 0, or minus the errno that says why it could not be promoted.
    pub remount_error: i32,
}

impl Ack {
    /// A refusal.
    #[must_use]
    pub fn refusal(epoch: MountEpoch, errno: i32, text: &str) -> Self {
        Self {
            error: -errno,
            text: text.to_owned(),
            connection: None,
            regions: Default::default(),
            mount: MountId(-1),
            epoch,
            flags: MountFlags::default(),
            remount_error: 0,
        }
    }

    /// What a page says, whatever that is.
    #[must_use]
    pub fn parse(page: &[u8; SYNC_SIZE]) -> Self {
        let page = Record::new(page, 0);
        Self {
            error: page.i32(0),
            text: page.text(8, NAME),
            connection: ConnectionId::new(page.i32(72)),
            regions: std::array::from_fn(|region| page.text(76 + region * PATH, PATH)),
            mount: MountId(page.i32(3660)),
            epoch: MountEpoch(page.u32(3664)),
            flags: MountFlags::from_bits(page.u32(3668)),
            remount_error: page.i32(3672),
        }
    }

    /// The page that says this.
    #[must_use]
    pub fn write(&self) -> [u8; SYNC_SIZE] {
        let mut bytes = [0; SYNC_SIZE];
        let mut page = RecordMut::new(&mut bytes, 0);
        page.put_i32(0, self.error);
        page.put_u32(4, VERSION);
        page.put_text(8, NAME, &self.text);
        page.put_i32(72, self.connection.map_or(self.error.min(-1), |connection| i32::from(connection.raw())));
        for (region, path) in self.regions.iter().enumerate() {
            page.put_text(76 + region * PATH, PATH, path);
        }
        page.put_i32(3660, self.mount.0);
        page.put_u32(3664, self.epoch.0);
        page.put_u32(3668, self.flags.bits());
        page.put_i32(3672, self.remount_error);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a client of the original's wrote it, and the original's daemon answered it.
    #[test]
    fn a_request_and_its_answer_are_the_originals() {
        let request = MountRequest {
            version: 2,
            cluster: "disk".to_owned(),
            disk: "loop1".to_owned(),
            host: 1,
            flags: MountFlags::READ_WRITE,
            epoch: MountEpoch(1),
        };
        let page = request.write();
        assert_eq!(page[..8], *b"\x02\0\0\0disk");
        assert_eq!(page[0x44..0x49], *b"loop1");
        assert_eq!(page[0x84..0x90], [1, 0, 0, 0, 0x13, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(MountRequest::parse(&page), request);

        let ack = Ack {
            error: 0,
            text: String::new(),
            connection: ConnectionId::new(2),
            regions: std::array::from_fn(|region| format!("/dev/shm/pfsd//shm_pfsd-loop1_{region:02}")),
            mount: MountId(0),
            epoch: MountEpoch(1),
            flags: MountFlags::READ_WRITE,
            remount_error: 0,
        };
        let page = ack.write();
        assert_eq!(page[..8], [0, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(page[0x48..0x4c], [2, 0, 0, 0]);
        assert_eq!(page[0x4c..0x4c + 33], *b"/dev/shm/pfsd//shm_pfsd-loop1_00\0");
        assert_eq!(page[0xe4c..0xe58], [0, 0, 0, 0, 1, 0, 0, 0, 0x13, 0, 0, 0]);
        assert_eq!(Ack::parse(&page), ack);
    }

    #[test]
    fn a_refusal_names_no_connection() {
        let ack = Ack::refusal(MountEpoch(3), libc::ECONNREFUSED, "Too many connections!");
        assert_eq!(Ack::parse(&ack.write()), ack);
        assert_eq!(ack.write()[72..76], (-111i32).to_le_bytes());
    }
}
