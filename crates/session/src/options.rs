//! Socket options that the application has set on a connection, as they are told and kept: for each its level, its name, the
//! length of its value, and the value, one after another. What they mean is the kernel's business.

/// Longest value.
pub const LONGEST: usize = 40;
/// Most bytes for one session; what is set beyond that is not kept.
pub const MOST: usize = 512;

/// The options of a run: level, name, value. Ends where the run does not hold what it says.
pub fn each(mut run: &[u8]) -> impl Iterator<Item = (u8, u8, &[u8])> {
    std::iter::from_fn(move || {
        let ([level, name, length], rest) = run.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(*length))?;
        run = rest;
        Some((*level, *name, value))
    })
}

/// Whether a run holds what it says, and no value that is too long.
#[must_use]
pub fn is_whole(run: &[u8]) -> bool {
    let (length, longest) =
        each(run).fold((0, 0), |(sum, longest), (.., value)| (sum + 3 + value.len(), value.len().max(longest)));
    length == run.len() && longest <= LONGEST
}

/// The value of an option.
#[must_use]
pub fn get(run: &[u8], level: u8, name: u8) -> Option<&[u8]> {
    each(run).find(|(l, n, _)| (*l, *n) == (level, name)).map(|(.., value)| value)
}

/// Adds an option to a run.
pub fn append(run: &mut Vec<u8>, level: u8, name: u8, value: &[u8]) {
    let value = &value[..value.len().min(LONGEST)];
    run.extend_from_slice(&[level, name, value.len() as u8]);
    run.extend_from_slice(value);
}

/// Sets an option in a run: the newest is the last, for one may change another. Where there is no room, nothing is set.
pub fn set(run: &mut Vec<u8>, level: u8, name: u8, value: &[u8]) {
    let mut new = Vec::with_capacity(run.len() + 3 + value.len());
    each(run).filter(|(l, n, _)| (*l, *n) != (level, name)).for_each(|(l, n, v)| append(&mut new, l, n, v));
    append(&mut new, level, name, value);
    if new.len() <= MOST {
        *run = new;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_value_counts_and_room_is_bounded() {
        let mut run = Vec::new();
        set(&mut run, 6, 1, &[1, 0, 0, 0]);
        set(&mut run, 0, 2, &[255]);
        set(&mut run, 6, 1, &[0, 0, 0, 0]);
        assert!(each(&run).eq([(0, 2, &[255][..]), (6, 1, &[0, 0, 0, 0])]) && is_whole(&run));
        assert_eq!((get(&run, 6, 1), get(&run, 6, 2)), (Some(&[0, 0, 0, 0][..]), None));
        (0..=255).for_each(|name| set(&mut run, 1, name, &[7; LONGEST]));
        assert!(run.len() <= MOST && is_whole(&run) && get(&run, 6, 1).is_some());
        for n in 1..run.len() {
            assert!(!is_whole(&run[..n]) || each(&run[..n]).map(|(.., v)| v.len() + 3).sum::<usize>() == n);
        }
        let mut long = vec![1, 2, LONGEST as u8 + 1];
        long.extend([0; LONGEST + 1]);
        assert!(!is_whole(&long));
    }
}
