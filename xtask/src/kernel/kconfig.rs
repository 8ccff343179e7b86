//! Which options a kernel tree has: its Kconfig files, read as far as messages about options need it.
//!
//! Follows `source` from the top file, so that only what counts for x86 is seen. Evaluating the files is the
//! kernel's own business (`make olddefconfig`); a construct that is not understood here is passed over.

use std::collections::HashMap;

use camino::Utf8Path;

/// An option, as far as messages need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Symbol {
    /// False where the kernel computes the value and a config cannot ask for it.
    pub has_prompt: bool,
    /// Conditions of the last definition with a prompt, those of enclosing menus included.
    pub depends: Vec<String>,
}

/// Every option of a tree.
#[derive(Debug, Default)]
pub struct Symbols {
    symbols: HashMap<String, Symbol>,
}

/// A block that is open, with its conditions.
#[derive(Debug, Default)]
struct Block {
    depends: Vec<String>,
}

impl Symbols {
    /// Reads the Kconfig files of an unpacked kernel.
    pub fn scan(tree: &Utf8Path) -> Symbols {
        Symbols::parse("Kconfig", |path| {
            // Kconfig files hold a few names in Latin-1.
            let bytes = std::fs::read(tree.join(path)).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    /// Reads the file `top` and all that it sources, by way of `read`; a file that is not there is passed over.
    pub fn parse(top: &str, mut read: impl FnMut(&str) -> Option<String>) -> Symbols {
        let mut symbols = Symbols::default();
        symbols.parse_file(top, &mut vec![Block::default()], &mut read, 0);
        symbols
    }

    /// The option called `CONFIG_X`.
    pub fn get(&self, option: &str) -> Option<&Symbol> {
        self.symbols.get(option.strip_prefix("CONFIG_")?)
    }

    /// The option whose name is most like `CONFIG_X`, if any is.
    pub fn nearest(&self, option: &str) -> Option<String> {
        let name = option.strip_prefix("CONFIG_")?;
        let found = crate::nearest::nearest(name, self.symbols.keys().map(String::as_str))?;
        Some(format!("CONFIG_{found}"))
    }

    fn parse_file(
        &mut self,
        path: &str,
        blocks: &mut Vec<Block>,
        read: &mut impl FnMut(&str) -> Option<String>,
        depth: u32,
    ) {
        // Deeper than any kernel's files; a file that sources itself ends here.
        const MAX_DEPTH: u32 = 32;
        let Some(text) = read(path).filter(|_| depth < MAX_DEPTH) else { return };
        // The option whose attributes are being read: its name and this definition.
        let mut current: Option<(String, Symbol)> = None;
        let mut help_indent = None;
        for line in text.replace("\\\n", " ").lines() {
            if is_help(line, &mut help_indent) {
                continue;
            }
            let line = line.trim();
            let (word, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let rest = rest.trim();
            let starts_entry = matches!(
                word,
                "config"
                    | "menuconfig"
                    | "if"
                    | "endif"
                    | "menu"
                    | "endmenu"
                    | "choice"
                    | "endchoice"
                    | "comment"
                    | "source"
                    | "mainmenu"
            );
            if starts_entry {
                self.define(current.take(), blocks);
            }
            match word {
                "config" | "menuconfig" => current = Some((rest.to_owned(), Symbol::default())),
                "help" | "---help---" => help_indent = Some(None),
                "source" => {
                    let sourced =
                        rest.trim_matches('"').replace("$(SRCARCH)", "x86").replace("$SRCARCH", "x86");
                    self.parse_file(&sourced, blocks, read, depth + 1);
                }
                "if" => blocks.push(Block { depends: vec![rest.to_owned()] }),
                "menu" | "choice" => blocks.push(Block::default()),
                "endif" | "endmenu" | "endchoice" if blocks.len() > 1 => {
                    blocks.pop();
                }
                "depends" => {
                    let condition = rest.strip_prefix("on").unwrap_or(rest).trim().to_owned();
                    match (&mut current, blocks.last_mut()) {
                        (Some((_, symbol)), _) => symbol.depends.push(condition),
                        (None, Some(block)) => block.depends.push(condition),
                        (None, None) => {}
                    }
                }
                "bool" | "tristate" | "string" | "hex" | "int" | "prompt"
                    if rest.starts_with(['"', '\'']) =>
                {
                    if let Some((_, symbol)) = &mut current {
                        symbol.has_prompt = true;
                    }
                }
                _ => {}
            }
        }
        self.define(current, blocks);
    }

    /// Notes a definition. An option may have several; one with a prompt says more than one without.
    fn define(&mut self, definition: Option<(String, Symbol)>, blocks: &[Block]) {
        let Some((name, symbol)) = definition else { return };
        let known = self.symbols.entry(name).or_default();
        if symbol.has_prompt || !known.has_prompt {
            let mut depends: Vec<String> = Vec::new();
            for condition in blocks.iter().flat_map(|block| &block.depends).chain(&symbol.depends) {
                let is_compound = condition.contains("||");
                let condition = if is_compound { format!("({condition})") } else { condition.clone() };
                if !depends.contains(&condition) {
                    depends.push(condition);
                }
            }
            *known = Symbol { has_prompt: symbol.has_prompt, depends };
        }
    }
}

/// True for a line of a help text: what follows `help` and is indented as its first line is. `state` is `Some(None)`
/// after the word `help`, `Some(Some(columns))` within the text.
fn is_help(line: &str, state: &mut Option<Option<usize>>) -> bool {
    let Some(indent) = *state else { return false };
    if line.trim().is_empty() {
        return true;
    }
    let columns = line
        .chars()
        .take_while(|c| c.is_whitespace())
        .fold(0, |columns, c| if c == '\t' { (columns / 8 + 1) * 8 } else { columns + 1 });
    let is_text = columns > 0 && columns >= indent.unwrap_or(columns);
    *state = is_text.then(|| Some(indent.unwrap_or(columns)));
    is_text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: &str = r#"
mainmenu "Linux"
source "arch/$(SRCARCH)/Kconfig"
menu "File systems"
	depends on BLOCK
if MISC_FILESYSTEMS
source "fs/erofs/Kconfig"
endif
endmenu
config AFTER
	bool "After" if EXPERT
"#;
    const X86: &str = "config X86\n\tdef_bool y\n";
    const EROFS: &str = r#"
config EROFS_FS
	tristate "EROFS filesystem support"
	depends on A || \
		B
	select LIBCRC32C
	help
	  EROFS is a file system
	  config NOT_AN_OPTION

	  with help.

config EROFS_FS_ZIP
	bool
	depends on EROFS_FS
"#;

    fn symbols() -> Symbols {
        Symbols::parse("Kconfig", |path| match path {
            "Kconfig" => Some(TOP.to_owned()),
            "arch/x86/Kconfig" => Some(X86.to_owned()),
            "fs/erofs/Kconfig" => Some(EROFS.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn options_are_found_with_their_conditions() {
        let symbols = symbols();
        let erofs = symbols.get("CONFIG_EROFS_FS").unwrap();
        assert!(erofs.has_prompt);
        assert_eq!(erofs.depends.len(), 3);
        assert_eq!(erofs.depends[..2], ["BLOCK", "MISC_FILESYSTEMS"]);
        assert!(erofs.depends[2].starts_with("(A || "), "{erofs:?}");
        assert!(!symbols.get("CONFIG_X86").unwrap().has_prompt);
        assert!(!symbols.get("CONFIG_EROFS_FS_ZIP").unwrap().has_prompt);
        assert_eq!(symbols.get("CONFIG_AFTER"), Some(&Symbol { has_prompt: true, depends: vec![] }));
        assert_eq!(symbols.get("CONFIG_NOT_AN_OPTION"), None);
    }

    #[test]
    fn a_misspelt_option_finds_its_neighbour() {
        assert_eq!(symbols().nearest("CONFIG_EROFS_SF").as_deref(), Some("CONFIG_EROFS_FS"));
        assert_eq!(symbols().nearest("CONFIG_SOMETHING_ELSE_ENTIRELY"), None);
    }

    #[test]
    fn a_file_that_sources_itself_ends() {
        let symbols = Symbols::parse("Kconfig", |_| Some("config A\nsource \"Kconfig\"\n".to_owned()));
        assert!(symbols.get("CONFIG_A").is_some());
    }
}
