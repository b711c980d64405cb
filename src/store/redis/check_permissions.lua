-- Runs every command of the other scripts on an unused key (KEYS[1]), so that a missing permission is detected before a
-- commit fails in its middle. The write comes last.
call('TIME')
call('TYPE', KEYS[1])
call('HMGET', KEYS[1], 'name')
call('HLEN', KEYS[1])
call('HSCAN', KEYS[1], '0', 'COUNT', 1)
call('HDEL', KEYS[1], 'name')
call('PEXPIRE', KEYS[1], 1)
call('UNLINK', KEYS[1])
call('HSET', KEYS[1], 'name', '')
call('UNLINK', KEYS[1])
return {'done'}
