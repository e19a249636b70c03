//! "Did you mean": the known name that a misspelled one resembles most.

/// The candidate at the least edit distance (Damerau and Levenshtein's, case ignored), if at most a
/// third of the longer name's characters have to be edited. Of equals, the first.
///
/// ```
/// use epiphyte_data::nearest_name;
///
/// let known = ["rank", "alpha", "dropout"];
/// assert_eq!(nearest_name("rnak", known), Some("rank"));
/// assert_eq!(nearest_name("DropOut", known), Some("dropout"));
/// assert_eq!(nearest_name("epochs", known), None);
/// ```
pub fn nearest_name<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let name = name.to_lowercase();
    let length = name.chars().count();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&name, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            *distance <= length.max(candidate.chars().count()).div_ceil(3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
