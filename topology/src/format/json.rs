//! What the two JSON formats share: objects and arrays of raw values, each of which knows its
//! place in the text. Raw values are skipped over without recursion, so depth is no danger.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Format, NumbersAsRates, ParseError, Source};
use crate::graph::Attributes;

pub(super) type Members<'a> = BTreeMap<String, &'a RawValue>;

/// Which of the two JSON formats the text looks like.
pub(super) fn detect(content: &str) -> Format {
    let Ok(members) = serde_json::from_str::<Members>(content) else {
        // Broken JSON: the reader will say where. The key is a fair guess at the writer.
        let is_petgraph = content.contains("\"edge_property\"") || !content.contains("\"source\"");
        return if is_petgraph { Format::PetgraphJson } else { Format::NodeLinkJson };
    };
    let first_edge = members
        .get("edges")
        .and_then(|edges| edges.get().trim_start_matches('[').trim_start().chars().next());
    let is_node_link = !members.contains_key("edge_property")
        && !members.contains_key("node_holes")
        && (members.contains_key("links")
            || members.contains_key("directed")
            || members.contains_key("multigraph")
            || first_edge == Some('{'));
    if is_node_link { Format::NodeLinkJson } else { Format::PetgraphJson }
}

impl<'a> Source<'a> {
    /// The members of the object that is the whole text.
    pub(super) fn json_root(&self) -> Result<Members<'a>, ParseError> {
        self.json(self.content, "a JSON object")
    }

    /// The members of an object.
    pub(super) fn json_members(&self, raw: &'a RawValue) -> Result<Members<'a>, ParseError> {
        self.json(raw.get(), "a JSON object")
    }

    /// The elements of an array.
    pub(super) fn json_elements(&self, raw: &'a RawValue) -> Result<Vec<&'a RawValue>, ParseError> {
        self.json(raw.get(), "a JSON array")
    }

    /// A number that counts something.
    pub(super) fn json_index(&self, raw: &'a RawValue) -> Result<usize, ParseError> {
        self.json(raw.get(), "a node number")
    }

    fn json<T: Deserialize<'a>>(&self, text: &'a str, expected: &str) -> Result<T, ParseError> {
        serde_json::from_str(text).map_err(|error| {
            let start = self.offset_of(text);
            if error.is_data() {
                return self.expected(start, expected);
            }
            let message = error.to_string();
            let found = message.split(" at line ").next().unwrap_or_default();
            let offset = start + offset_in(text, error.line(), error.column());
            self.expected_but(
                offset,
                format!("{expected} in valid JSON"),
                format!("fault: {found}"),
            )
        })
    }

    /// Where a part of the content begins.
    pub(super) fn offset_of(&self, part: &str) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.content.as_ptr() as usize)
    }

    /// What names a node: a string as it is; a number, truth value or array (networkx writes
    /// the nodes of its grids so) by its text; null is no name.
    pub(super) fn json_name(&self, raw: &'a RawValue) -> Result<Option<String>, ParseError> {
        let text = raw.get();
        match text.as_bytes().first() {
            Some(b'"') => self.json::<String>(text, "a node name").map(Some),
            Some(b'n') => Ok(None),
            Some(b'{') => Err(self.expected(self.offset_of(text), "a node name")),
            _ => Ok(Some(text.split_whitespace().collect())),
        }
    }

    /// The attributes among the members of an edge. Null is the same as absent.
    pub(super) fn json_attributes(&self, members: &Members<'a>) -> Result<Attributes, ParseError> {
        let mut attributes = Attributes::default();
        for (name, raw) in members {
            if let Some(field) = attributes.field(name) {
                *field = self.json(raw.get(), &format!("a number for {name}"))?;
            }
        }
        Ok(attributes)
    }

    /// The weight of a petgraph edge: an object of attributes, or a number that is the rate;
    /// anything else says nothing.
    pub(super) fn json_weight(
        &self,
        raw: &'a RawValue,
        as_rates: &mut NumbersAsRates,
    ) -> Result<Attributes, ParseError> {
        match raw.get().as_bytes().first() {
            Some(b'{') => self.json_attributes(&self.json_members(raw)?),
            Some(b'-' | b'0'..=b'9') => {
                *as_rates = NumbersAsRates::Yes;
                let rate = self.json(raw.get(), "a number for the rate")?;
                Ok(Attributes { rate: Some(rate), ..Attributes::default() })
            }
            _ => Ok(Attributes::default()),
        }
    }
}

/// The byte offset of a line and column, both counted from 1, the column in bytes.
fn offset_in(text: &str, line: usize, column: usize) -> usize {
    let line_start = match line.saturating_sub(2) {
        _ if line < 2 => 0,
        newlines => text.match_indices('\n').nth(newlines).map_or(text.len(), |(at, _)| at + 1),
    };
    line_start + column.saturating_sub(1)
}

/// A JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// `"rate":1.5,"loss":0.1`, or nothing.
pub(super) fn members_of(attributes: Attributes) -> String {
    let known: Vec<_> =
        attributes.known().map(|(name, value)| format!("\"{name}\":{value:?}")).collect();
    known.join(",")
}
