-- Ends the lease, if it is still that of the caller. ARGV: epoch, session id.
local meta = read_meta()
if meta.epoch == tonumber(ARGV[1]) and meta.session_id == ARGV[2] then
  call('HSET', KEYS[1], 'lease_end_ms', '0')
end
return {'done'}
