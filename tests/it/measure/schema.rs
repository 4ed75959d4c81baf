//! The part of JSON Schema that `trace.schema.json` uses. An unknown keyword is a fault.

use serde_json::Value;

/// Returns every fault of `value` under `schema`.
pub fn faults(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    let Some(rules) = schema.as_object() else { return vec![format!("{place}: the schema is no object")] };
    for (word, rule) in rules {
        match word.as_str() {
            "$schema" | "title" => {}
            "type" => {
                let fine = match rule.as_str() {
                    Some("object") => value.is_object(),
                    Some("array") => value.is_array(),
                    Some("string") => value.is_string(),
                    Some("number") => value.is_number(),
                    Some("integer") => value.is_u64() || value.is_i64(),
                    _ => false,
                };
                if !fine {
                    found.push(format!("{place}: {value} is no {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().is_some_and(|allowed| allowed.contains(value)) {
                    found.push(format!("{place}: {value} is none of {rule}"));
                }
            }
            "minimum" => {
                if value.as_f64() < rule.as_f64() {
                    found.push(format!("{place}: {value} is below {rule}"));
                }
            }
            "minItems" => {
                if value.as_array().map(Vec::len) < rule.as_u64().map(|n| n as usize) {
                    found.push(format!("{place}: fewer than {rule} items"));
                }
            }
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.get(name).is_none() {
                        found.push(format!("{place}: `{name}` is missing"));
                    }
                }
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                for name in value.as_object().into_iter().flat_map(|o| o.keys()).filter(|name| !known(name)) {
                    found.push(format!("{place}: `{name}` is not known"));
                }
            }
            "properties" => {
                for (name, schema) in rule.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        found.extend(faults(schema, value, &format!("{place}.{name}")));
                    }
                }
            }
            "items" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(faults(rule, item, &format!("{place}[{i}]")));
                }
            }
            "oneOf" => {
                let each: Vec<Vec<String>> =
                    rule.as_array().into_iter().flatten().map(|schema| faults(schema, value, place)).collect();
                if each.iter().filter(|faults| faults.is_empty()).count() != 1 {
                    found.push(format!("{place}: fits not one of several: {each:?}"));
                }
            }
            other => found.push(format!("{place}: the schema's word `{other}` is not known to this test")),
        }
    }
    found
}
