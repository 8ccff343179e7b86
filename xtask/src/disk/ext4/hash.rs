//! The hash by which a directory's index is sorted: half of MD4, over names as unsigned bytes (`fs/ext4/hash.c`).

/// `DX_HASH_HALF_MD4`; the superblock says that names' bytes are unsigned.
pub(super) const VERSION: u8 = 1;

/// What a hash never is: it stands for the end of a directory (`EXT4_HTREE_EOF_32BIT`, shifted).
const END: u32 = 0xffff_fffe;

/// MD4's constants (RFC 1320).
const ROUND_2: u32 = 0x5a82_7999;
const ROUND_3: u32 = 0x6ed9_eba1;

/// A name's hash. Its lowest bit is 0: in an index it says that the hash before goes on.
pub(super) fn hash(seed: &[u8; 16], name: &[u8]) -> u32 {
    let mut state = [0; 4];
    for (word, bytes) in state.iter_mut().zip(seed.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut left = name;
    while !left.is_empty() {
        transform(&mut state, &block(left));
        left = left.get(32..).unwrap_or_default();
    }
    let hash = state[1] & !1;
    if hash == END { END - 2 } else { hash }
}

/// The next 32 bytes of a name as words, each with its first byte at the top; what is missing is the length.
fn block(left: &[u8]) -> [u32; 8] {
    let length = left.len() as u32;
    let padding = (length | length << 8).wrapping_mul(0x1_0001);
    let mut words = [padding; 8];
    for (word, bytes) in words.iter_mut().zip(left.chunks(4)) {
        *word = bytes.iter().fold(padding, |word, byte| word << 8 | u32::from(*byte));
    }
    words
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut now = *state;
    let mut round =
        |mix: &dyn Fn(u32, u32, u32) -> u32, order: [usize; 8], constant: u32, turns: [u32; 4]| {
            for (step, word) in order.into_iter().enumerate() {
                let [a, b, c, d] = now;
                let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(input[word]).wrapping_add(constant);
                now = [d, sum.rotate_left(turns[step % 4]), b, c];
            }
        };
    round(&choose, [0, 1, 2, 3, 4, 5, 6, 7], 0, [3, 7, 11, 19]);
    round(&majority, [1, 3, 5, 7, 0, 2, 4, 6], ROUND_2, [3, 5, 9, 13]);
    round(&parity, [3, 7, 2, 6, 1, 5, 0, 4], ROUND_3, [3, 9, 11, 15]);
    for (word, more) in state.iter_mut().zip(now) {
        *word = word.wrapping_add(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `debugfs -R 'dx_hash -h half_md4 -s SEED NAME'` says; it knows signed bytes alone, and here they are the same.
    #[test]
    fn names_have_the_hashes_that_debugfs_gives_them() {
        let seed = *b"\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10";
        for (name, expected) in [(&b"a"[..], 0x8d08_ec4c), (b"file-with-a-long-name-000123", 0xe86e_927c)] {
            assert_eq!(hash(&seed, name), expected, "{}", name.escape_ascii());
        }
    }
}
