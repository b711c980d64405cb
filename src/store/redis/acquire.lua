-- Starts a term, unless the lease of another holder is valid or the store is behind the fence that the caller saw.
-- ARGV: holder, session id, lease in ms, schema, holder info, epoch and seq of that fence, the installation of the caller
-- and its former name.
local holder, session_id, lease_ms, schema = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local holder_info, seen_epoch, seen_seq = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local installation, former = ARGV[8], ARGV[9]

local refusal = foreign()
if refusal then
  return refusal
end
local meta = read_meta()
if meta.schema and meta.schema ~= schema then
  return {'schema', meta.schema}
end
if meta.installation ~= '' and meta.installation ~= installation and meta.installation ~= former then
  return {'other', meta.installation, meta.holder}
end
if meta.epoch < seen_epoch or (meta.epoch == seen_epoch and meta.seq < seen_seq) then
  return {'behind', text(meta.epoch), text(meta.seq)}
end
local time = now()
if meta.holder ~= holder and meta.lease_end_ms > time then
  -- A lease ends at most its length from now, unless the clock was set back: then the wait is one length and not the
  -- whole step.
  if meta.lease_end_ms > time + meta.lease_ms then
    meta.lease_end_ms = time + meta.lease_ms
    call('HSET', KEYS[1], 'lease_end_ms', text(meta.lease_end_ms))
  end
  return {'held', meta.holder, text(math.max(meta.lease_end_ms - time, 1)), meta.holder_info, text(meta.epoch),
    text(meta.seq)}
end
-- The clock distinguishes epochs from before and after the server lost its data.
local epoch = math.max(meta.epoch + 1, time)
call('HSET', KEYS[1], 'epoch', text(epoch), 'session_id', session_id, 'holder', holder, 'holder_info', holder_info,
  'last_digest', '', 'lease_end_ms', text(time + lease_ms), 'lease_ms', text(lease_ms), 'schema', schema,
  'installation', installation)
return {'leader', text(epoch), text(meta.seq)}
