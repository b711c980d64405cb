//! `ctl token …` and `ctl auth …`.

use super::credentials::{CredentialsFile, TOKEN_FILE_VARIABLE, read_token, read_token_file};
use super::error::{CliError, Result};
use super::exit::Exit;
use super::resource::try_each;
use super::sanitize::{display_path, sanitize};
use super::sync_text::or_dash;
use super::table_layout::{Column, render_table, terminal_width};
use super::token_args::{AuthCommand, TokenArgs, TokenCommand};
use super::{Context, console};
use crate::client::Credentials;
use crate::wire::AbsPath;
use crate::wire::join::{JoinTokenRequest, JoinTokenView};
use crate::wire::token::{AuthStatus, PathScope, Role, TokenId, TokenRequest, TokenView};
use jiff::Timestamp;
use serde_json::json;
use std::io::IsTerminal;

/// # Errors
/// The master can't be reached, or refuses the command.
pub(super) async fn run_token_command(ctx: &Context, command: TokenCommand) -> Result<Exit> {
    match command {
        TokenCommand::Create(TokenArgs { worker: Some(worker_id), path, ttl, .. }) => {
            let ttl_seconds =
                ttl.map(|ttl| u32::try_from(ttl.as_secs().max(1)).unwrap_or(u32::MAX));
            let request = JoinTokenRequest { worker_id, storage_paths: path, ttl_seconds };
            let created = ctx.new_client()?.create_join_token(&request).await?;
            let text = created.secret.to_text();
            ctx.print(&created.body, &text, &text)?;
            if ctx.global.is_text() {
                let JoinTokenView { worker_id, expires_at, .. } = &created.token;
                console::print_note(&format!(
                    "it is shown only now, good once, and until {expires_at}; on the host of {worker_id}, in a file with \
                     mode 600: ctl agent --join-token-file FILE"
                ));
            }
        }
        TokenCommand::Create(args) => {
            let request = token_request(args)?;
            let created = ctx.new_client()?.create_token(&request).await?;
            ctx.print(&created.body, &created.secret, &created.secret)?;
            if ctx.global.is_text() {
                let id = &created.token.id;
                console::print_note(&format!(
                    "token {id}: it is shown only now; give it to its user, for: ctl auth login"
                ));
            }
        }
        TokenCommand::List => {
            let list = ctx.new_client()?.list_tokens().await?;
            let ids = list.tokens.iter().map(|token| &token.id);
            let ids = ids.chain(list.join_tokens.iter().map(|token| &token.id));
            let ids: String = ids.map(|id| format!("{id}\n")).collect();
            let mut text = token_table(&list.tokens, terminal_width(), Timestamp::now());
            if !list.join_tokens.is_empty() {
                text.push('\n');
                let now = Timestamp::now();
                text.push_str(&join_token_table(&list.join_tokens, terminal_width(), now));
            }
            ctx.print(&list.body, &ids, &text)?;
        }
        TokenCommand::Revoke { ids } => {
            let client = ctx.new_client()?;
            let revoke = async |id: &TokenId| match client.revoke_token(id).await {
                Err(error) if error.is_not_found() => {
                    client.revoke_join_token(id).await.map(|token| (token.value.id, token.body))
                }
                revoked => revoked.map(|token| (token.value.id, token.body)),
            };
            return try_each(ctx, &client, &ids, revoke, |(id, body)| {
                ctx.print(&body, "", &format!("token {id} is revoked"))
            })
            .await;
        }
    }
    Ok(Exit::Ok)
}

/// # Errors
/// The role is missing.
fn token_request(args: TokenArgs) -> Result<TokenRequest> {
    let role = args.role.ok_or_else(|| CliError::usage("name the role with --role ROLE"))?;
    let pairs = args.scope.chunks_exact(2);
    let scope = |pair: &[AbsPath]| PathScope { from: pair[0].clone(), to: pair[1].clone() };
    Ok(TokenRequest {
        role,
        scopes: pairs.map(scope).collect(),
        may: args.may,
        run_as: args.run_as,
        ttl_seconds: args
            .expires
            .map(|life| u32::try_from(life.as_secs().max(1)).unwrap_or(u32::MAX)),
        label: args.label,
    })
}

fn token_table(tokens: &[TokenView], width: Option<usize>, now: Timestamp) -> String {
    let columns = [
        Column::new("TOKEN"),
        Column::new("ROLE"),
        Column::new("STATE"),
        Column { omit_order: Some(1), ..Column::new("EXPIRES") },
        Column { omit_order: Some(2), ..Column::new("MAY") },
        Column { omit_order: Some(3), ..Column::new("RUN AS") },
        Column::new("LABEL"),
        Column { is_below_row: true, ..Column::new("SCOPES") },
    ];
    let rows = tokens.iter().map(|token| {
        let may: Vec<&str> = token.may.iter().map(|right| right.as_str()).collect();
        vec![
            token.id.to_string(),
            token.role.as_str().to_owned(),
            state_text(token, now).to_owned(),
            or_dash(token.expires_at.map(|end| end.to_string())),
            or_dash(Some(may.join(",")).filter(|may| !may.is_empty())),
            or_dash(token.run_as.as_ref().map(ToString::to_string)),
            or_dash(token.label.as_deref().map(sanitize)),
            scopes_text(token),
        ]
    });
    render_table(&columns, rows.collect(), width)
}

fn join_token_table(tokens: &[JoinTokenView], width: Option<usize>, now: Timestamp) -> String {
    let columns = [
        Column::new("JOIN TOKEN"),
        Column::new("WORKER"),
        Column::new("STATE"),
        Column::new("EXPIRES"),
        Column { is_below_row: true, ..Column::new("PATHS") },
    ];
    let rows = tokens.iter().map(|token| {
        let state = match (token.revoked_at, token.used_at) {
            (Some(_), _) => "revoked",
            (None, Some(_)) => "used",
            _ if token.expires_at <= now => "expired",
            _ => "valid",
        };
        let paths: Vec<String> = token.storage_paths.iter().map(ToString::to_string).collect();
        vec![
            token.id.to_string(),
            token.worker_id.to_string(),
            state.to_owned(),
            token.expires_at.to_string(),
            paths.join(", "),
        ]
    });
    render_table(&columns, rows.collect(), width)
}

fn state_text(token: &TokenView, now: Timestamp) -> &'static str {
    match (token.revoked_at, token.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(end)) if end <= now => "expired",
        _ => "valid",
    }
}

fn scopes_text(token: &TokenView) -> String {
    if token.role == Role::Admin {
        return "all paths".to_owned();
    }
    let scope = |scope: &PathScope| format!("{} to {}", scope.from, scope.to);
    token.scopes.iter().map(scope).collect::<Vec<_>>().join(", ")
}

/// # Errors
/// The master can't be reached or refuses the token, or the file of the tokens can't be used.
pub(super) async fn run_auth_command(ctx: &Context, command: AuthCommand) -> Result<Exit> {
    match command {
        AuthCommand::Login { token_file } => {
            let token = match token_file {
                Some(file) if file.as_os_str() != "-" => read_token_file(&file)?,
                _ => {
                    if std::io::stdin().is_terminal() {
                        console::print_note("token (then ^D):");
                    }
                    read_token(std::io::stdin())?
                }
            };
            let file = credentials_file()?;
            let client = ctx.new_client_with(Credentials::Token(token.clone()))?;
            let status = client.fetch_auth_status().await?;
            file.store(client.urls(), &token)?;
            let text = format!(
                "{}\nstored in {} for {}",
                status_text(&status),
                display_path(file.path()),
                client.urls().join(", ")
            );
            ctx.print(&status.body, "", &text)?;
            if std::env::var_os(TOKEN_FILE_VARIABLE).is_some_and(|value| !value.is_empty()) {
                console::print_note("CTL_TOKEN_FILE is set, and overrides the stored token");
            }
        }
        AuthCommand::Status => {
            let status = ctx.new_client()?.fetch_auth_status().await?;
            ctx.print(&status.body, "", &status_text(&status))?;
        }
        AuthCommand::Logout => {
            let client = ctx.new_client_with(Credentials::Empty)?;
            let (urls, was_stored) = (client.urls(), credentials_file()?.remove(client.urls())?);
            let done = if was_stored { "removed" } else { "there was none" };
            let document = json!({"urls": urls, "removed": was_stored}).to_string();
            ctx.print(
                document.as_bytes(),
                "",
                &format!("stored token for {}: {done}", urls.join(", ")),
            )?;
        }
    }
    Ok(Exit::Ok)
}

fn credentials_file() -> Result<CredentialsFile> {
    CredentialsFile::locate(|name| std::env::var_os(name)).ok_or_else(|| {
        CliError::new("there is no directory to store tokens in")
            .with_hint("set XDG_CONFIG_HOME or HOME, or use a file: CTL_TOKEN_FILE=FILE")
    })
}

fn status_text(status: &AuthStatus) -> String {
    let role = status.role.map_or("none: routes of agents only", Role::as_str);
    let mut lines = vec![format!("served as {}, role {role}", sanitize(&status.principal))];
    if let Some(token) = &status.token {
        lines.push(format!("paths: {}", scopes_text(token)));
        let may: Vec<&str> = token.may.iter().map(|right| right.as_str()).collect();
        lines.extend((!may.is_empty()).then(|| format!("rights: {}", may.join(", "))));
        lines.extend(token.expires_at.map(|end| format!("expires: {end}")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use crate::wire::token::Right;
    use clap::Parser;

    fn parse(line: &str) -> TokenRequest {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Token(TokenCommand::Create(args)) => token_request(args).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_options_of_a_token_become_its_request() {
        let request = parse(
            "ctl token create --role operator --scope /a /b --scope /c:d /e --may delete,chown --expires 30d --label nightly --run-as 1000:100,27",
        );
        let path = |text| AbsPath::new(text).unwrap();
        let scope = |from, to| PathScope { from: path(from), to: path(to) };
        assert_eq!(request.scopes, [scope("/a", "/b"), scope("/c:d", "/e")]);
        assert_eq!(request.may, [Right::Delete, Right::Chown]);
        assert_eq!(request.run_as, Some("1000:100,27".parse().unwrap()));
        assert_eq!((request.role, request.ttl_seconds), (Role::Operator, Some(30 * 86_400)));
        assert_eq!(parse("ctl token create --role admin").scopes, []);
        for bad in [
            "ctl token create",
            "ctl token create --role x",
            "ctl token create --role viewer --scope /a",
            "ctl token create --role viewer --scope a /b",
            "ctl token create --role operator --run-as alice",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_shows_the_state_of_each_token() {
        let at = |s| Some(Timestamp::from_second(s).unwrap());
        let token = |id: &str, expires_at, revoked_at| TokenView {
            id: id.parse().unwrap(),
            role: Role::Viewer,
            scopes: vec![PathScope {
                from: AbsPath::new("/a").unwrap(),
                to: AbsPath::new("/b").unwrap(),
            }],
            may: Vec::new(),
            run_as: None,
            label: Some("x\x1b[2J".to_owned()),
            created_at: Timestamp::UNIX_EPOCH,
            expires_at,
            revoked_at,
        };
        let tokens = [
            token("000000000001", at(100), None),
            token("000000000002", at(50), None),
            token("000000000003", None, at(1)),
        ];
        let text = token_table(&tokens, None, at(60).unwrap());
        let lines: Vec<&str> = text.lines().collect();
        for (line, state) in lines[1..].iter().zip(["valid", "expired", "revoked"]) {
            assert!(line.contains(state) && line.contains("/a to /b"), "{line}");
        }
        assert!(!text.contains('\x1b'));
    }
}
