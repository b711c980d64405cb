-- Runs every command of the other scripts on a key that nobody uses, so that a permission that is missing is found
-- before a commit fails in its middle. KEYS[1]: that key. What could leave something behind comes last.
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
