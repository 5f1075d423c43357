//! The table of all identities that this node knows.

use villus_labels::{Labels, NumericIdentity};
use villus_table::Table;

use crate::reserved::Reserved;

/// Number to labels: reserved, global and local ones. Policy selects from it.
pub type Identities = Table<NumericIdentity, Labels>;

/// A table that holds the reserved identities.
pub fn new_identities(reserved: &Reserved) -> Identities {
    let table = Table::new("identities");
    let mut write = table.write();
    for (number, labels) in reserved.iter() {
        write.put(number, labels.clone());
    }
    write.commit();
    table
}
