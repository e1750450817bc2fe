//! `pfs dumpfs`: headers and objects field by field.

use std::ffi::OsString;

use blockdev::Error;
use pfs::format::{
    Bda, BlktagNo, CHUNK_SIZE, ChunkHeader, ChunkId, DirentryNo, Field, InodeNo, Kind, Number, OBJECT_SIZE,
    SECTOR_SIZE, has_magic, header_fields, is_used, object_fields,
};
use pfs::volume::{Device, Load, Metadata};
use serde::{Serialize, Serializer};

use crate::original::number;
use crate::session::{Failure, Session};
use crate::text;

/// Show chunk headers, or objects, field by field.
///
/// Headers come with how many objects are used as the metadata sectors say, without the journal.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show objects, as they are with the journal.
    #[arg(short, long)]
    meta: bool,

    /// Objects of this kind only: 1 or blktag, 2 or direntry, 3 or inode.
    #[arg(short = 't', long = "type", value_name = "KIND")]
    kind: Option<String>,

    /// This chunk only.
    #[arg(short, long, value_name = "CHUNK")]
    chunk: Option<u32>,

    /// The object with this index in its chunk only.
    #[arg(short, long, value_name = "INDEX", value_parser = number)]
    object: Option<u64>,

    /// The volume.
    #[arg(value_name = "VOLUME")]
    volume: OsString,
}

/// The fields of one structure.
#[derive(Debug, Serialize)]
pub(crate) struct Fields(#[serde(serialize_with = "by_name")] pub(crate) Vec<Field>);

fn by_name<S: Serializer>(fields: &[Field], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(fields.iter().map(|field| (field.name, &field.value)))
}

pub(crate) fn run(args: &Args, session: &Session<'_>) -> Result<(), Failure> {
    let path = session.volume(&args.volume)?;
    if args.meta {
        // What is damaged is what somebody wants to look at.
        let volume = session.open_with(&path, Load { verify: false, ..Load::default() })?;
        let objects = objects(args, session, volume.metadata())?;
        return session.print(&objects, |objects| {
            let mut out = Vec::new();
            objects.iter().for_each(|object| text::fields(&object.0, 0, &mut out));
            out
        });
    }
    session.print(&headers(args.chunk, &mut session.device(&path)?)?, header_text)
}

#[derive(Debug, Serialize)]
struct Headers {
    chunks: Vec<Header>,
    counts: [Count; 3],
}

#[derive(Debug, Serialize)]
struct Header {
    chunk: ChunkId,
    fields: Fields,
}

/// How many objects of a kind there are.
#[derive(Debug, Serialize)]
struct Count {
    kind: Kind,
    free: u64,
    used: u64,
}

/// One chunk's header, or all as far as each says that there is another.
fn headers(only: Option<u32>, device: &mut Device) -> blockdev::Result<Headers> {
    let mut counts = Kind::ALL.map(|kind| Count { kind, free: 0, used: 0 });
    let mut chunks = Vec::new();
    let mut next = ChunkId::new(only.unwrap_or(0));
    while let Some(id) = next {
        let (path, size) = (device.path().display(), device.size());
        if size.bytes() < id.start().bytes() + CHUNK_SIZE.bytes() {
            return Err(Error::invalid(format!("{path} has {size}, and so no chunk {id}")));
        }
        let none = Error::invalid(format!("{path} has no chunk header at {}", id.start()));
        let mut sector = [0; SECTOR_SIZE];
        device.read(id.start(), &mut sector)?;
        if !has_magic(&sector) {
            return Err(none);
        }
        for count in &mut counts {
            let mut objects = vec![[0; OBJECT_SIZE]; count.kind.per_chunk()];
            device.read(Bda::new(id.start().bytes() + count.kind.offset()), objects.as_flattened_mut())?;
            let used = objects.iter().filter(|bytes| is_used(bytes)).count() as u64;
            count.used += used;
            count.free += objects.len() as u64 - used;
        }
        chunks.push(Header { chunk: id, fields: Fields(header_fields(&sector)) });
        let more = ChunkHeader::parse(&sector, id).is_ok_and(|header| header.chunks.get() > id.raw() + 1);
        next = if more && only.is_none() { ChunkId::new(id.raw() + 1) } else { None };
    }
    Ok(Headers { chunks, counts })
}

fn header_text(headers: &Headers) -> Vec<u8> {
    let mut out = Vec::new();
    for header in &headers.chunks {
        out.extend(format!("chunk {}: \n", header.chunk).into_bytes());
        text::fields(&header.fields.0, 2, &mut out);
    }
    out.extend(b"type\tfree\tused\ttotal\n");
    for Count { kind, free, used } in &headers.counts {
        let name = if *kind == Kind::Direntry { "dentry".to_owned() } else { kind.to_string() };
        out.extend(format!("{name}\t{free}\t{used}\t{}\n", free + used).into_bytes());
    }
    out
}

fn objects(args: &Args, session: &Session<'_>, metadata: &Metadata) -> Result<Vec<Fields>, Failure> {
    let original = session.compatible;
    let kinds = match args.kind.as_deref() {
        None => Kind::ALL.to_vec(),
        Some("1") => vec![Kind::Blktag],
        Some("2") => vec![Kind::Direntry],
        Some("3") => vec![Kind::Inode],
        // The original knows numbers only. It has nothing to say of a kind or chunk that there is not, and leaves with 0.
        Some(_) if original => Vec::new(),
        Some("blktag") => vec![Kind::Blktag],
        Some("direntry") => vec![Kind::Direntry],
        Some("inode") => vec![Kind::Inode],
        Some(kind) => {
            let error = Error::invalid(format!("there is no kind {kind:?} of objects"));
            return Err(error.with_hint("1 or blktag, 2 or direntry, 3 or inode").into());
        }
    };
    let ids = metadata.headers().map(|header| header.id);
    let ids: Vec<ChunkId> = ids.filter(|id| args.chunk.is_none_or(|chunk| chunk == id.raw())).collect();
    if let (true, Some(chunk), false) = (ids.is_empty(), args.chunk, original) {
        return Err(Error::invalid(format!("the volume has no chunk {chunk}")).into());
    }
    let mut objects = Vec::new();
    for kind in kinds {
        for id in &ids {
            match kind {
                Kind::Blktag => set::<BlktagNo>(metadata, *id, args.object, &mut objects)?,
                Kind::Direntry => set::<DirentryNo>(metadata, *id, args.object, &mut objects)?,
                Kind::Inode => set::<InodeNo>(metadata, *id, args.object, &mut objects)?,
            }
        }
    }
    Ok(objects)
}

/// The objects of one kind in one chunk, or one of them.
fn set<N: Number>(
    metadata: &Metadata,
    chunk: ChunkId,
    only: Option<u64>,
    into: &mut Vec<Fields>,
) -> blockdev::Result<()> {
    let range = match only {
        None => 0..N::KIND.per_chunk(),
        Some(index) => usize::try_from(index).map_or(0..0, |index| index..index.saturating_add(1)),
    };
    for index in range {
        let number = N::new(chunk, index);
        let number = number.ok_or_else(|| Error::invalid(format!("a chunk has no {} of index {index}", N::KIND)))?;
        into.push(Fields(object_fields(metadata.bytes(number)?)));
    }
    Ok(())
}
